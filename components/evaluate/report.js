"use strict";
// The browser of prompts: which two systems stand side by side, and the way from prompt to prompt.
{
  const ALL = "all systems";
  const get = (id) => document.getElementById(id);
  const prompts = [...document.querySelectorAll("details.prompt")];
  const systems = [...new Set([...document.querySelectorAll("[data-system]")].map((section) => section.dataset.system))];
  const left = get("left"), right = get("right");

  function side() {
    for (const section of document.querySelectorAll("[data-system]")) {
      const place = [left.value, right.value].indexOf(section.dataset.system);
      section.hidden = right.value !== ALL && place < 0;
      section.style.order = place < 0 ? 2 : place;
    }
    for (const row of document.querySelectorAll(".beside")) row.scrollLeft = 0;
  }
  function go(by) {
    const at = prompts.findIndex((prompt) => prompt.open);
    const to = prompts[Math.min(Math.max(at + by, 0), prompts.length - 1)];
    for (const prompt of prompts) prompt.open = prompt === to;
    to.querySelector("summary").focus({ preventScroll: true });
    to.scrollIntoView({ block: "start" });
  }
  if (systems.length > 1) {
    for (const name of systems) { left.append(new Option(name)); right.append(new Option(name)); }
    right.append(new Option(ALL));
    const chosen = get("choose").dataset;
    left.value = chosen.left; right.value = chosen.right;
    left.addEventListener("change", side);
    right.addEventListener("change", side);
    get("previous").addEventListener("click", () => go(-1));
    get("following").addEventListener("click", () => go(1));
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input, textarea")) return;
      if (event.key === "j") go(1);
      else if (event.key === "k") go(-1);
      else if (event.key === "s" && right.value !== ALL) { [left.value, right.value] = [right.value, left.value]; side(); }
      else return;
      event.preventDefault();
    });
    get("choose").hidden = false;
    side();
  }
}
