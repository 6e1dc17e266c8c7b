"""The stylometric embedder: how a text is written, not what it is about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts import InputError
from components.models.stylometric import Stylometric, features

# Three events, each told in four manners.
LIGHTHOUSE = [
    'I climbed. Dark. Wet. The lamp was out. I swore. I lit it. Nothing came. I waited. "Hello?" I said. No one. Just sea.',
    "It is, I think, to be regretted that the keeper, who had for many years, and with a diligence which all remarked upon, "
    "tended that great lamp, should have found it, upon the night of which I speak, extinguished; for there were ships.",
    "omg so the lighthouse?? went OUT!!! and i was like no way, no WAY!!! so i ran up like 200 stairs lol and its just dead!!! "
    "cant even!!!",
    "The keeper would be climbing, and the stairs would be turning, and the wind would be singing and pulling and falling, "
    "and there would be the lamp, waiting, and the long sea breathing under everything and going nowhere and staying.",
]
DRAGON = [
    'It came at dawn. Big. Green. I ran. It burned the barn. I hid. It left. "You alive?" Tom said. I was. Just about.',
    "There can be, as I suppose, no creature which, being so large, and so very ancient, could excite in those who beheld it "
    "a greater alarm than did that dragon, when, upon the morning in question, it descended, unannounced, upon the farm.",
    "ok so a DRAGON?? just showed up!!! at the farm!!! and i was like dude what!!! and it burned the whole barn lol im not "
    "even kidding!!!",
    "The dragon would be coming, and the morning would be opening, and the barn would be burning and cracking and falling, "
    "and there would be the farmer, running, and the long field smoking under everything and going nowhere and ending.",
]
LETTER = [
    'Mail came. One letter. No name. I read it. It was short. "Run," it said. I ran. They came. I was gone. Good.',
    "I had, I confess, expected nothing of the post, which, in that parish, was seldom punctual, and was never, to my "
    "knowledge, of interest; and it was, therefore, with some astonishment that I perceived, upon the table, a letter.",
    "so i get this letter right?? no name!!! and it just says RUN!!! and im like lol what!!! but then theres ppl outside and "
    "i just book it!!!",
    "The letter would be lying there, and the kettle would be boiling, and the hand would be opening and reading and shaking, "
    "and there would be the road, calling, and the long rain coming under everything and going nowhere and closing.",
]
EVENTS = np.array([[features(text) for text in event] for event in (LIGHTHOUSE, DRAGON, LETTER)])


def test_manner_counts_for_more_than_matter() -> None:
    """Every text is nearer to the other events in its manner than to its own event in any other manner."""
    for event in range(3):
        for manner in range(4):
            near = EVENTS @ EVENTS[event, manner]
            same_manner = np.delete(near[:, manner], event)
            same_event = np.delete(near[event], manner)
            assert same_manner.min() > same_event.max()
            assert same_manner.mean() > same_event.mean() + 0.2


def test_case_of_quotes_and_dashes_is_no_style() -> None:
    assert features("“Don’t – I’ll,” he said.") == pytest.approx(features("\"Don't — I'll,\" he said."))


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_every_text_has_a_direction(text: str) -> None:
    vector = features(text)
    assert vector.dtype == np.float32
    assert vector.shape == (Stylometric().get_embedding_dimension(),)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(features(text), vector)


def test_long_texts_cost_no_more() -> None:
    text = LIGHTHOUSE[1] * 400
    np.testing.assert_array_equal(features(text), features(text + LETTER[2] * 1000))


def test_it_is_a_module_of_sentence_transformers(tmp_path: Path) -> None:
    """Used, saved and read back as any other; without a pickle."""
    from sentence_transformers import SentenceTransformer

    from components.models.embedders import load_embedder

    model = load_embedder("stylometric")
    np.testing.assert_array_equal(model.encode(LIGHTHOUSE), EVENTS[0])
    assert model.max_seq_length is None
    model.save(str(tmp_path / "saved"))
    assert {path.suffix for path in (tmp_path / "saved").rglob("*.*")} <= {".json", ".md"}
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True)
    np.testing.assert_array_equal(again.encode(LIGHTHOUSE), EVENTS[0])
    assert again.get_embedding_dimension() == EVENTS.shape[2]
    # By name alone, no folder may run code.
    with pytest.raises(InputError, match="saved"):
        load_embedder(str(tmp_path / "saved"))
