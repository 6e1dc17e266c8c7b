"""Repairs: what the source did to its texts, undone. Each is a function from a text to a text, switched by its name.

Texts are otherwise kept as they were written; in particular, no Unicode normal form is imposed.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from html.entities import html5

# All that is left of a text that its author or a moderator took back.
REMOVED = re.compile(r"\[\s*(?:removed|deleted)(?: by [^\]\n]*)?\s*\]", re.IGNORECASE)
_TAGS = re.compile(r"\A(?:\[\s?(?:[A-Z]{2}|[Ww]p)\s?\]\s*)+")
# Only with their semicolon: "AT&T" and "R&copyright" are what they look like.
_ENTITY = re.compile(r"&(?:#\d{1,8}|#[xX][0-9a-fA-F]{1,7}|[A-Za-z][A-Za-z0-9]{1,31});")
_ESCAPED_AMPERSAND = re.compile(r"&(?:(?:amp|AMP|#0*38|#[xX]0*26);)+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NEWLINE = "<\\newline>"
# Not the arm of a shrug, whose backslashes are its own.
_ESCAPE = re.compile(r"(?<![\\¯])\\([*_~^#>\[\]-])")
_SEED = re.compile(r" <SEED>|<SEED> ?")
_EDIT = re.compile(r"\W*edit(?:ed)?(?:\s?\d+)?\s?(?::|[-–—]\s|\b(?:for|to fix)\b)", re.IGNORECASE)
_THANKS = re.compile(
    r"\W*(?:an|a/n|author'?s note)\s?:|\W*(?:thanks|thank you)[\w ]{0,20} for reading\b|"
    r"\W*(?:any |all |constructive )*(?:crit(?:s|ique|icism)?|feedback)\b(?: please|[\w ,]{0,40}\b(?:welcome|appreciated)\b)",
    re.IGNORECASE,
)
_REDDIT = re.compile(r"(?<![\w/])/?[ru]/\w{3,}|\breddit\.com/")
_PLUG = re.compile(
    r"\b(?:more|stor(?:y|ies)|read(?:ing)?|sub(?:reddit|scribe)?|check|enjoyed|liked|follow|join|is me|part|thanks|writ\w+)\b",
    re.IGNORECASE,
)
_TOKENISED: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"`` ?"), '"'),
    (re.compile(r" ?''"), '"'),
    (re.compile(r"“ | ”"), lambda quote: quote[0].strip()),
    (re.compile(r" (?:n['’]t|['’] ?(?:s|m|d|ll|re|ve|t))\b", re.IGNORECASE), lambda end: end[0].replace(" ", "")),
    (re.compile(r"\b(gon|wan|got) ([nt]a)\b", re.IGNORECASE), r"\1\2"),
    (re.compile(r"(?<! ) +([,.;:?!)\]])"), r"\1"),
    (re.compile(r"([(\[]) +"), r"\1"),
)


def _html_entities(text: str) -> str:
    return _ENTITY.sub(_character, _ESCAPED_AMPERSAND.sub("&", text)).replace("\u200b", "")


def _character(entity: re.Match[str]) -> str:
    name = entity[0][1:]
    if not name.startswith("#") and name not in html5:
        return entity[0]
    character = html.unescape(entity[0])
    # An entity is how the source wrote an ordinary space; a no-break space typed as such is kept.
    return " " if character == "\xa0" else character


def _detokenise(text: str) -> str:
    for pattern, replacement in _TOKENISED:
        text = pattern.sub(replacement, text)
    return text


def _newline_tokens(text: str) -> str:
    if _NEWLINE not in text:
        return text
    return "\n".join(part.strip(" \t") for part in text.split(_NEWLINE))


def _removed_text(text: str) -> str:
    before, _, last_line = text.rpartition("\n")
    return before if REMOVED.fullmatch(last_line.strip()) and before else text


def _author_notes(text: str) -> str:
    """The text without closing lines that are notes, and the rules and blank lines that set them off; never without all."""
    lines = text.split("\n")
    end = len(lines)
    for index in range(len(lines) - 1, -1, -1):
        if _is_note(lines[index]):
            end = index
        elif _has_letters(lines[index]):
            break
    else:
        return text
    if end == len(lines):
        return text
    while not _has_letters(lines[end - 1]):
        end -= 1
    return "\n".join(lines[:end])


def _is_note(line: str) -> bool:
    words = len(line.split())
    plug = _REDDIT.search(line) and (words <= 4 or _PLUG.search(line))
    return bool(_EDIT.match(line) or (words <= 60 and (plug or _THANKS.match(line))))


def _has_letters(line: str) -> bool:
    return any(character.isalnum() for character in line)


Repair = Callable[[str], str]
# In the order in which they are made: entities may hide what the others look for, and a CR may stand before a newline token.
ANY: dict[str, Repair] = {
    "html_entities": _html_entities,
    "bom": lambda text: text.replace("\ufeff", ""),
    "control": lambda text: _CONTROL.sub("", text),
    "newline_tokens": _newline_tokens,
    "line_endings": lambda text: text.replace("\r\n", "\n").replace("\r", "\n"),
    "markdown_escapes": lambda text: _ESCAPE.sub(r"\1", text),
    "detokenise": _detokenise,
}
PROMPT: dict[str, Repair] = {
    "prompt_tag": lambda text: _TAGS.sub("", text),
    "seed_marker": lambda text: _SEED.sub("", text),
    "removed_text": _removed_text,
}
RESPONSE: dict[str, Repair] = {"author_notes": _author_notes}
_ALL = ANY | PROMPT | RESPONSE
REPAIRS = tuple(_ALL)


def repair(text: str, names: Sequence[str]) -> tuple[str, int]:
    """The text after the named repairs, repeated until they change nothing more, without outer white space.

    Returns:
        The text, and the repairs that changed it as a bit mask over `REPAIRS`.
    """
    made = 0
    changed = True
    while changed:
        changed = False
        text = text.strip()
        for name in names:
            repaired = _ALL[name](text)
            if repaired != text:
                text, made, changed = repaired, made | 1 << REPAIRS.index(name), True
    return text, made
