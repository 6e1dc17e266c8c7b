"""Writes a workspace in which `dvc repro` makes a model again: its code, its parameters, its stories."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.contracts import InputError, atomic
from components.lineage import PRODUCED, RAW, digest
from components.origin import Origin
from components.trace.ancestry import Ancestry, flat, given
from components.trace.content import Contents, Place, fetch, folder_place, has_commit
from components.trace.parameters import depends_on, differences, merge
from components.trace.stages import Stage, locked, stages

# What the workspace is to make: written into it.
PLAN = "reproduce.json"
# Where stories go whose source has no place in a workspace.
_RAW = Path("data/raw")


@dataclass(frozen=True)
class Plan:
    """A workspace.

    Attributes:
        stage: the stage that makes the model.
        expected: digest by path, in the order in which they are made.
        notes: what differs from how the model was made, or was decided, in words.
    """

    of: str
    folder: Path
    commit: str
    stage: str
    expected: Mapping[str, str]
    notes: tuple[str, ...]


def reproduce(
    ancestry: Ancestry,
    contents: Contents,
    folder: Path,
    advance: Callable[[int], Any],
    commit: str = "",
    raw: Path | None = None,
) -> Plan:
    """Writes the workspace to `folder`, which must not exist.

    Args:
        commit: whose code to use, where no one commit has that of all steps.
        raw: the raw data, where it is kept at no place that is known.

    Raises:
        InputError: if code, parameters or data cannot be had as they were; says which, and what to do.
    """
    if folder.exists():
        raise InputError(f"{folder}: exists. Name a new folder.")
    made = {origin.run_id: origin for origin in ancestry.model.walk() if origin.record}
    if gaps := [origin.gap for origin in ancestry.model.walk() if origin.gap]:
        raise InputError(f"{ancestry.label}: its lineage is broken: {gaps[0]}")
    if not made:
        raise InputError(f"{ancestry.label}: raw data, which no step makes.")
    runs = sorted(made.values(), key=lambda origin: origin.record.started if origin.record else 0)
    notes: list[str] = []
    chosen = _code(ancestry.model, runs, contents.repository, commit, notes)
    with atomic(folder) as partial:
        _check_out(contents.repository, chosen, partial)
        text = (partial / "dvc.yaml").read_text(encoding="utf-8")
        parameters = partial / "params.yaml"
        document = _yaml().load(parameters.read_text(encoding="utf-8"))
        changed = _parameters(document, runs, list(ancestry.runs().values()), notes)
        changed |= _objectives(document, runs)
        known = stages(text, document)
        if lacking := sorted({origin.step for origin in runs if origin.step not in known}):
            raise InputError(
                f"commit {chosen[:12]}: its dvc.yaml has no stage for {', '.join(lacking)}. Add what makes it to dvc.yaml, on "
                "top of that commit, and name the new one with --commit."
            )
        source = document.get("ingest", {}).get("source", "")
        if (moved := _data(ancestry, contents, partial, source, raw, advance, notes)) != source:
            document.setdefault("ingest", {})["source"] = moved
            changed = True
        if changed:
            written = io.StringIO()
            _yaml().dump(document, written)
            parameters.write_text(written.getvalue(), encoding="utf-8")
        expected = _expected(runs, known)
        _lock(partial / "dvc.lock", expected, notes)
        plan = Plan(ancestry.label, folder, chosen, known[ancestry.model.step].name, expected, tuple(notes))
        told = {"of": plan.of, "commit": chosen, "stage": plan.stage, "expected": dict(expected), "notes": notes}
        (partial / PLAN).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return plan


def compare(plan: Plan) -> list[str]:
    """What the workspace made that has not the digest that it should have, or did not make; in the order of making."""
    found = []
    for name, value in plan.expected.items():
        path = plan.folder / name
        there = digest(path) if path.exists() else "missing"
        if there != value:
            found.append(f"{name}: {there}, was {value}")
    return found


def _code(model: Origin, runs: list[Origin], repository: Path, commit: str, notes: list[str]) -> str:
    """The commit whose code is that of all steps; or else the one that was asked for."""
    chosen = commit or model.commit
    unclean = [origin.step for origin in runs if origin.dirty != "false"]
    if unclean and not commit:
        raise InputError(
            f"{', '.join(unclean)} ran on code that is in no commit. Name the nearest commit with --commit, or train again "
            "from a commit."
        )
    notes += [f"{step} ran on code that is in no commit" for step in unclean]
    if not has_commit(repository, chosen):
        raise InputError(f"commit {chosen}: not in {repository.resolve()}. Fetch it, or name the checkout with --repository.")
    chosen = _git(repository, "rev-parse", f"{chosen}^{{commit}}").strip()
    parameters = _yaml().load(_git(repository, "show", f"{chosen}:params.yaml"))
    known = stages(_git(repository, "show", f"{chosen}:dvc.yaml"), parameters)
    differing = []
    for origin in runs:
        if origin.commit in (chosen, "unknown"):
            continue
        if not has_commit(repository, origin.commit):
            differing.append(f"{origin.step} ran at {origin.commit[:12]}, which is not in the repository")
            continue
        code = known[origin.step].code if origin.step in known else ("components",)
        changed = _git(repository, "diff", "--name-only", origin.commit, chosen, "--", *code, "constraints.txt").split()
        if changed:
            differing.append(f"{origin.step} ran at {origin.commit[:12]}, since when {', '.join(changed[:5])} changed")
    if differing and not commit:
        listed = "\n  ".join(differing)
        raise InputError(
            f"no one commit has the code of all steps; compared with {chosen[:12]}, of {model.step}:\n  {listed}\n"
            "Name the commit to use for all with --commit; what it makes may differ."
        )
    notes += differing
    return chosen


def _check_out(repository: Path, commit: str, folder: Path) -> None:
    """A repository with this one commit, also where no branch has it."""
    folder.mkdir()
    serve = "git -c uploadpack.allowAnySHA1InWant=true upload-pack"
    _git(folder, "init", "--quiet")
    _git(folder, "fetch", "--quiet", "--depth=1", f"--upload-pack={serve}", str(repository.resolve()), commit)
    _git(folder, "checkout", "--quiet", "--detach", "FETCH_HEAD")


def _parameters(document: dict[str, Any], runs: list[Origin], others: list[Origin], notes: list[str]) -> bool:
    """Gives the document the values with which the steps ran; returns whether anything changed.

    Args:
        others: runs of which the model was not made, but its evaluation.
    """
    merged = merge(runs)
    if merged.incomplete:
        raise InputError(
            f"{', '.join(merged.incomplete)} ran before parameters were recorded whole. `polyphony lineage show` has them as "
            "text, `git worktree add DIR COMMIT` the code."
        )
    if merged.conflicts:
        raise InputError("\n  ".join(["no one params.yaml says what the steps ran with:", *merged.conflicts]))
    # What the evaluation ran with, where that is open.
    wanted = differences(document, merge([*runs, *others]).document)
    wanted |= differences(document, merged.document)
    for name, value in wanted.items():
        *sections, key = name.split(".")
        place = document
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    notes += [f"params.yaml: {name} = {json.dumps(value)}, not as in the commit" for name, value in wanted.items()]
    # What a step was not given had its default, whatever the commit's file says.
    surplus = [name for name, _ in flat(document) if any(_defaulted(origin, name) for origin in runs)]
    for name in surplus:
        *sections, key = name.split(".")
        place = document
        for section in sections:
            place = place[section]
        del place[key]
    notes += [f"params.yaml: {name} left to its default, not as in the commit" for name in surplus]
    return bool(wanted or surplus)


def _objectives(document: dict[str, Any], runs: list[Origin]) -> bool:
    """Has the document train what the runs trained, which the runs themselves are not told; returns whether that changed it."""
    listed = document.get("train", {}).get("objectives")
    steps = [origin.step.removeprefix("train-") for origin in runs if origin.step.startswith("train-")]
    lacking = [step for step in steps if listed is not None and step not in (*listed, "sft", "reward")]
    if lacking:
        document["train"]["objectives"] = [*listed, *lacking]
    return bool(lacking)


def _defaulted(origin: Origin, name: str) -> bool:
    """Whether the run read a parameter, and was not given it."""
    values = given(origin)
    return name.partition(".")[0] in values and depends_on(origin.step, name) and name not in dict(flat(values))


def _data(
    ancestry: Ancestry,
    contents: Contents,
    folder: Path,
    source: str,
    raw: Path | None,
    advance: Callable[[int], Any],
    notes: list[str],
) -> str:
    """Puts the raw data into the workspace; returns what `ingest.source` must be."""
    origins = {origin.digest: origin for origin in ancestry.model.walk() if origin.name == RAW}
    if not origins:
        return source
    if len(origins) > 1:
        raise InputError(f"{ancestry.label}: made of several raw data: {', '.join(origins)}. Nothing can make that in one go.")
    ((wanted, origin),) = origins.items()
    inside = "://" not in source and not Path(source).is_absolute() and ".." not in Path(source).parts
    # Of an address, the name of the file; of one in git, that after the fragment's mark.
    target = folder / source if inside else folder / _RAW / Path(source.rpartition("#")[2].partition("?")[0]).name
    if target.exists() and digest(target) == wanted:
        return source
    places: list[Place | None] = (
        [folder_place(str(raw), raw)] if raw else list(contents.places(origin, ancestry.readers().get(wanted)))
    )
    for place in places:
        if place is None or place.trouble:
            continue
        with atomic(target) as copy:
            sound = fetch(place, wanted, copy, advance)
        if sound:
            notes.append(f"{target.relative_to(folder)}: from {place.name}")
            return source if inside else str(target.relative_to(folder))
    if raw:
        raise InputError(f"{raw}: not the data that the model was made of: its digest is not {wanted}.")
    raise InputError(
        f"the raw data {wanted} (ingest.source {source}) is in no DVC cache or remote, not in the commit, and no longer at its "
        "source. Give it as --raw PATH."
    )


def _expected(runs: list[Origin], known: Mapping[str, Stage]) -> dict[str, str]:
    found = {}
    for origin in runs:
        assert origin.record is not None  # noqa: S101 - runs have one
        options = known[origin.step].options
        for key, name in sorted(origin.record.tags.items()):
            path = options.get(name.replace("_", "-"))
            if key.startswith(PRODUCED) and path:
                found[path] = key.removeprefix(PRODUCED)
    return found


def _lock(path: Path, expected: Mapping[str, str], notes: list[str]) -> None:
    """Keeps the commit's dvc.lock where it tells of this model: then `git diff dvc.lock` shows what came out otherwise."""
    if not path.is_file():
        return
    found = locked(path.read_text(encoding="utf-8"))
    if all(found.get(name) == value for name, value in expected.items()):
        notes.append("dvc.lock: the commit's, which has this model's digests")
    else:
        path.unlink()
        notes.append("dvc.lock: the commit's tells of another model; removed")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"git {arguments[0]} in {folder}: {done.stderr.strip()}")
    return done.stdout


def _yaml() -> Any:
    # Of DVC, which writes params.yaml with it too; comments stay.
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    return yaml
