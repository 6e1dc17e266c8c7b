"""Each repair on what it is for and on what it must leave alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.ingest.params import Repairs
from components.ingest.repairs import ANY, PROMPT, REPAIRS, RESPONSE, repair

CASES = [
    ("html_entities", "Tom &amp; Jerry &lt;3&#33; &#x48;i", "Tom & Jerry <3! Hi"),
    ("html_entities", "twice &amp;amp;quot;escaped&amp;quot;", 'twice "escaped"'),
    ("html_entities", "a&nbsp;b&#x200B;c\u200bd", "a bcd"),
    ("html_entities", "AT&T, R&copyright, &notaname; and &copyright;", "AT&T, R&copyright, &notaname; and &copyright;"),
    ("bom", "\ufeffonce\ufeff upon", "once upon"),
    ("control", "a\x00b\x08c\td\ne", "abc\td\ne"),
    ("line_endings", "one\r\ntwo\rthree\n", "one\ntwo\nthree"),
    ("newline_tokens", "one <\\newline> two<\\newline><\\newline>three", "one\ntwo\n\nthree"),
    ("newline_tokens", "<newline> and \\newline", "<newline> and \\newline"),
    ("markdown_escapes", r"\*Bang.\* \[Poem\] \_\_ \-", "*Bang.* [Poem] __ -"),
    ("markdown_escapes", r"C:\new ¯\_(ツ)_/¯ \\* ", r"C:\new ¯\_(ツ)_/¯ \\*"),
    ("prompt_tag", "[WP] A door.", "A door."),
    ("prompt_tag", "[ EU ][wp]  A door.", "A door."),
    ("prompt_tag", "[REDACTED] A door. [WP]", "[REDACTED] A door. [WP]"),
    ("seed_marker", "Write. <SEED> At length.\n\n<SEED> 1000 words. <seed>", "Write. At length.\n\n1000 words. <seed>"),
    ("removed_text", "A door.\n[removed]", "A door."),
    ("removed_text", "A door.\n [ Deleted by user ] ", "A door."),
    ("removed_text", "[removed]", "[removed]"),
    ("removed_text", "A [removed]\ndoor.", "A [removed]\ndoor."),
    ("author_notes", "The end.\n\nEDIT: FIRST GOLD!!!\nEdit 2: typo\n/r/MyTales", "The end."),
    ("author_notes", "The end.\n---\nMore stories at [r/MyTales](https://www.reddit.com/r/MyTales/)", "The end."),
    ("author_notes", "The end.\n****\nThanks for reading! Feedback is welcome.\n", "The end."),
    ("author_notes", "The end.\nCriticism very welcome!", "The end."),
    ("author_notes", "The end.\n(Edited for spacing)", "The end."),
    ("author_notes", "The end.\n\n***", "The end.\n\n***"),
    ("author_notes", "Edit: all of it\n/r/MyTales", "Edit: all of it\n/r/MyTales"),
    ("author_notes", "Edit: a poem.\nEdith said: thanks.", "Edit: a poem.\nEdith said: thanks."),
    (
        "author_notes",
        "So he/she typed r/nothing into the bar and waited there.",
        "So he/she typed r/nothing into the bar and waited there.",
    ),
    (
        "detokenise",
        "`` I did n't , '' she said ( twice ) . We ' ve seen him 's .",
        "\"I didn't,\" she said (twice). We've seen him's.",
    ),
    ("detokenise", "“ It ’ s gon na rain , ” he said . Do n’t !", "“It’s gonna rain,” he said. Don’t!"),
    ("detokenise", "She said 'so what' and  left.", "She said 'so what' and  left."),
]


@pytest.mark.parametrize(("name", "before", "after"), CASES)
def test_repair(name: str, before: str, after: str) -> None:
    text, made = repair(before, [name])
    assert text == after
    assert made == (1 << REPAIRS.index(name) if after != before.strip() else 0)


def test_every_repair_is_a_parameter_and_tested() -> None:
    assert set(REPAIRS) == set(Repairs.model_fields) == {name for name, *_ in CASES}
    assert len(REPAIRS) == len(ANY) + len(PROMPT) + len(RESPONSE)


def test_a_line_ends_once() -> None:
    assert repair("one\r <\\newline> \r\n <\\newline>two", list(ANY))[0] == "one\n\n\ntwo"


def test_repairs_uncover_one_another() -> None:
    text, made = repair("&amp;lt;\\newline&amp;gt;[WP] &#8203;a&#13;&#10;b", [*ANY, *PROMPT])
    assert text == "a\nb"
    assert {name for i, name in enumerate(REPAIRS) if made >> i & 1} == {
        *("html_entities", "newline_tokens", "prompt_tag", "line_endings")
    }


MARKS = [
    "&amp;",
    "lt;",
    "nbsp;",
    "\ufeff",
    "\x00",
    "<\\newline>",
    "[WP]",
    "<SEED>",
    "[removed]",
    "Edit: ",
    "r/abc ",
    " n't",
    "``",
]
messy = st.lists(st.sampled_from([*"ab &;<>\\[]*_-#\n\r\t`'\".,!", *MARKS]), max_size=40).map("".join)


@given(messy, st.sets(st.sampled_from(REPAIRS)))
def test_a_repaired_text_needs_no_repair(text: str, names: set[str]) -> None:
    order = [name for name in REPAIRS if name in names]
    repaired, _ = repair(text, order)
    assert repair(repaired, order) == (repaired, 0)
    assert repaired == repaired.strip()


@given(st.text("abc xyz,.!?\nÄß日本—“”’", max_size=60))
def test_ordinary_writing_is_kept(text: str) -> None:
    usual = [name for name in REPAIRS if Repairs.model_fields[name].default]
    assert repair(text, usual) == (text.strip(), 0)
