"""What the expectations look at: a row of numbers and hashes per response, prompt or pair, never the stories themselves."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from components.contracts import SPLITS, content_id

# Characters of a passage: about four words, so that few are the same by chance.
_PASSAGE = 20


def distinct_share(text: str) -> float:
    """Share of the text's passages of 20 characters that are distinct: 1 for a text that never repeats itself.

    A text that loops with period p has about p / length. Characters, not words, so that it holds in every language.
    """
    passages = len(text) - _PASSAGE + 1
    return len({text[i : i + _PASSAGE] for i in range(passages)}) / passages if passages > 0 else 1.0


def identities(batch: pa.RecordBatch) -> pd.DataFrame:
    """Of each response: ids, score and split as they are; `prompt` and `response` as content_id of the text."""
    rows = batch.select(["prompt_id", "response_id", "score", "split"]).to_pandas()
    return rows.assign(**{name: _hashes(batch, name) for name in ("prompt", "response")})


def response_features(batch: pa.RecordBatch) -> pd.DataFrame:
    """`identities`, and of each response:

    content: content_id of both texts, which response_id should be
    prompt_characters, response_characters: lengths, without white space at the ends
    distinct: `distinct_share` of the response
    """
    prompts = [text or "" for text in batch.column("prompt").to_pylist()]
    responses = [text or "" for text in batch.column("response").to_pylist()]
    return identities(batch).assign(
        content=pd.Series([content_id(*texts) for texts in zip(prompts, responses, strict=True)], dtype="str"),
        prompt_characters=[len(text.strip()) for text in prompts],
        response_characters=[len(text.strip()) for text in responses],
        distinct=[distinct_share(text) for text in responses],
    )


def in_order(responses: pd.DataFrame) -> pd.Series:
    """Whether each row comes after the one before it, by prompt_id, then response_id."""
    keys = responses["prompt_id"].fillna("") + "\0" + responses["response_id"].fillna("")
    return keys >= keys.shift(fill_value="")


def prompt_features(responses: pd.DataFrame) -> pd.DataFrame:
    """Of each prompt_id: numbers of `responses`, of distinct `texts`, `splits` and `scores`; in `train` and `test` 1 or 0."""
    groups = responses.groupby("prompt_id", sort=False)
    features = groups.agg(
        responses=("response_id", "size"),
        texts=("prompt", "nunique"),
        splits=("split", "nunique"),
        scores=("score", "nunique"),
        side=("split", "first"),
    )
    return features.assign(**{split: (features["side"] == split).astype(int) for split in SPLITS}).reset_index()


def deviation_features(deviations: pd.DataFrame, responses: pd.DataFrame) -> pd.DataFrame:
    """The deviations, and `known_prompt_id`: the prompt_id of that response in `responses`, null where it is not there."""
    known = responses.drop_duplicates("response_id").set_index("response_id")["prompt_id"]
    return deviations.assign(known_prompt_id=known.reindex(deviations["response_id"]).to_numpy())


def weight_means(deviations: pd.DataFrame) -> pd.DataFrame:
    """Of each prompt_id: mean `weight` of its responses."""
    return deviations.groupby("prompt_id", sort=False)["weight"].mean().reset_index()


def split_counts(pairs: pd.DataFrame) -> pd.DataFrame:
    """Of each prompt_id: number of distinct `splits` of its pairs."""
    return pairs.groupby("prompt_id", sort=False).agg(splits=("split", "nunique")).reset_index()


def pair_identities(batch: pa.RecordBatch) -> pd.DataFrame:
    """Of each pair: ids, scores and split as they are; `prompt`, `chosen` and `rejected` as content_id of the text."""
    names = ["prompt_id", "chosen_id", "rejected_id", "chosen_score", "rejected_score", "split"]
    rows = batch.select(names).to_pandas()
    return rows.assign(**{name: _hashes(batch, name) for name in ("prompt", "chosen", "rejected")})


def pair_features(pairs: pd.DataFrame, responses: pd.DataFrame, deviations: pd.DataFrame) -> pd.DataFrame:
    """`pair_identities`, and what the other tables know of each pair; null where they do not have the response.

    known_chosen_<column>, known_rejected_<column>: a column of `identities`
    chosen_weight: weight of the winner
    uses: number of pairs that have the winner or the loser, whichever is in more
    """
    known = responses.drop_duplicates("response_id").set_index("response_id")
    weights = deviations.drop_duplicates("response_id").set_index("response_id")["weight"]
    uses = pd.concat([pairs["chosen_id"], pairs["rejected_id"]]).value_counts()
    joined = {
        f"known_{side}_{column}": known[column].reindex(pairs[f"{side}_id"]).to_numpy()
        for side in ("chosen", "rejected")
        for column in known.columns
    }
    return pairs.assign(
        **joined,
        chosen_weight=weights.reindex(pairs["chosen_id"]).to_numpy(),
        uses=pd.concat([pairs[name].map(uses) for name in ("chosen_id", "rejected_id")], axis=1).max(axis=1),
    )


def _hashes(batch: pa.RecordBatch, name: str) -> pd.Series:
    texts = batch.column(name).to_pylist()
    return pd.Series([None if text is None else content_id(text) for text in texts], dtype="str")
