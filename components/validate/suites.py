"""The suites: what must hold (critical), what should (warning), and what is good to know (info)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import great_expectations.expectations as gxe
import pandas as pd
import pyarrow as pa
from great_expectations.expectations.expectation import Expectation

from components.contracts import DEVIATIONS, PAIRS, RESPONSES, SPLITS, Table
from components.validate import features
from components.validate.params import Params

# Rounding of weights and distances.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Checked:
    """Rows and what is expected of them.

    Attributes:
        name: what the rows are, in the report.
        ids: columns by which the report names a row at fault.
    """

    name: str
    rows: pd.DataFrame
    ids: tuple[str, ...]
    expectations: tuple[Expectation, ...]


def responses_suite(responses: pd.DataFrame, params: Params) -> list[Checked]:
    """Expectations on the `features.response_features` of all responses, in their order."""
    responses = responses.assign(in_order=features.in_order(responses))
    mostly: dict[str, Any] = {"severity": "warning", "mostly": 1 - params.tolerated}
    all_but = f"; at most {100 * params.tolerated:g} % may not" if params.tolerated else ""
    shortest, longest = params.min_characters, params.max_characters
    per_response = (
        *declared(RESPONSES),
        gxe.ExpectColumnValuesToBeUnique(column="response_id", description="response_id is unique."),
        _equal("prompt_id", "prompt", "prompt_id is the content_id of the prompt."),
        _equal("response_id", "content", "response_id is the content_id of prompt and response."),
        gxe.ExpectColumnValuesToBeInSet(
            column="in_order", value_set=[True], description="Rows are sorted by prompt_id, then response_id."
        ),
        _between("prompt_characters", 1, None, "The prompt is not blank."),
        _between("response_characters", 1, None, "The response is not blank."),
        gxe.ExpectColumnValuesToBeUnique(
            column="response", description=f"No other prompt has the same response{all_but}.", **mostly
        ),
        _between(
            "response_characters",
            shortest,
            longest,
            f"The response has {shortest} to {longest} characters{all_but}.",
            **mostly,
        ),
        _between(
            "distinct",
            params.min_distinct,
            None,
            f"The response does not loop: {100 * params.min_distinct:g} % or more of its passages are distinct{all_but}.",
            **mostly,
        ),
    )
    per_prompt = (
        _between("splits", None, 1, "The prompt is on one side of the split."),
        _between("texts", None, 1, "prompt_id stands for one prompt."),
        *(_sum_from(split, 1, f"There are {split} prompts.") for split in SPLITS),
        *(
            _between("responses", least, None, f"The prompt has {least} responses or more{all_but}.", **mostly)
            for least in sorted({2, params.min_responses})
        ),
        _between("scores", 2, None, f"The scores of the prompt differ, so that they make a pair{all_but}.", **mostly),
        _sum_from(
            "test",
            params.min_test_prompts,
            f"There are {params.min_test_prompts} test prompts or more: with few, every interval is wide.",
            severity="warning",
        ),
    )
    return [
        Checked("responses", responses, ("response_id",), per_response),
        Checked("prompts", features.prompt_features(responses), ("prompt_id",), per_prompt),
    ]


def weights_suite(responses: pd.DataFrame, deviations: pd.DataFrame, pairs: pd.DataFrame, params: Params) -> list[Checked]:
    """Expectations on deviations and pairs, given the `features.identities` of all responses."""
    per_deviation = (
        *declared(DEVIATIONS),
        gxe.ExpectColumnValuesToBeUnique(column="response_id", description="response_id is unique."),
        _not_null("known_prompt_id", "response_id is one of the responses."),
        _equal("prompt_id", "known_prompt_id", "prompt_id is that of the response."),
        *(_between(name, -_TOLERANCE, 2 + _TOLERANCE, f"{name} is a distance in [0, 2].") for name in ("semantic", "style")),
        _between("weight", 0, None, "weight is not negative."),
    )
    per_mean = (
        _between("weight", 1 - _TOLERANCE, None, "The weights of a prompt have mean 1 or more."),
        _between(
            "weight",
            None,
            1 + _TOLERANCE,
            "The weights of a prompt have mean 1; only weight.floor makes it more.",
            severity="warning",
        ),
    )
    per_pair = (
        *declared(PAIRS),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=["chosen_id", "rejected_id"], description="No pair is there twice."),
        gxe.ExpectSelectColumnValuesToBeUniqueWithinRecord(
            column_list=["chosen", "rejected"], description="Winner and loser are different texts."
        ),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A="chosen_score", column_B="rejected_score", description="The winner has the higher score."
        ),
        *_as_in_responses("chosen"),
        *_as_in_responses("rejected"),
        _not_null("chosen_weight", "The winner has a weight."),
        _between(
            "chosen_weight",
            _TOLERANCE,
            None,
            f"The pair teaches something: its winner's weight is above 0; at most {100 * params.max_zero_weight:g} % may not.",
            severity="warning",
            mostly=1 - params.max_zero_weight,
        ),
        _between("uses", None, 1, "Winner and loser are in no other pair.", severity="info"),
    )
    per_pair_prompt = (_between("splits", None, 1, "All pairs of the prompt are on one side of the split."),)
    known = features.deviation_features(deviations, responses)
    joined = features.pair_features(pairs, responses, deviations)
    return [
        Checked("deviations", known, ("response_id",), per_deviation),
        Checked("prompts with weights", features.weight_means(deviations), ("prompt_id",), per_mean),
        Checked("pairs", joined, ("chosen_id", "rejected_id"), per_pair),
        Checked("prompts with pairs", features.split_counts(pairs), ("prompt_id",), per_pair_prompt),
    ]


def declared(table: Table) -> Iterable[Expectation]:
    """What a table's declaration says: some rows, no nulls, finite numbers, listed values. Types are checked on reading."""
    yield gxe.ExpectTableRowCountToBeBetween(min_value=1, description="The table is not empty.")
    for column in table.columns:
        if not column.nullable:
            yield _not_null(column.name, f"{column.name} is there in every row.")
        if pa.types.is_floating(column.type):
            yield _between(column.name, -sys.float_info.max, sys.float_info.max, f"{column.name} is finite.")
        if column.values:
            listed = f"{column.name} is one of {', '.join(column.values)}."
            yield gxe.ExpectColumnValuesToBeInSet(column=column.name, value_set=list(column.values), description=listed)


def _as_in_responses(side: str) -> Iterable[Expectation]:
    """That the winner, or the loser, is what `responses` says it is."""
    yield _not_null(f"known_{side}_response", f"{side}_id is one of the responses.")
    yield _equal("prompt_id", f"known_{side}_prompt_id", f"prompt_id is that of {side}_id.")
    yield _equal("prompt", f"known_{side}_prompt", f"prompt is that of {side}_id.")
    yield _equal("split", f"known_{side}_split", f"split is that of {side}_id.")
    yield _equal(side, f"known_{side}_response", f"{side} is the text of {side}_id.")
    yield _equal(f"{side}_score", f"known_{side}_score", f"{side}_score is the score of {side}_id.")


def _not_null(column: str, description: str) -> Expectation:
    return gxe.ExpectColumnValuesToNotBeNull(column=column, description=description)


def _equal(one: str, other: str, description: str) -> Expectation:
    """Null is another expectation's matter."""
    return gxe.ExpectColumnPairValuesToBeEqual(
        column_A=one, column_B=other, ignore_row_if="either_value_is_missing", description=description
    )


def _between(column: str, low: float | None, high: float | None, description: str, **options: Any) -> Expectation:
    return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high, description=description, **options)


def _sum_from(column: str, low: float, description: str, **options: Any) -> Expectation:
    return gxe.ExpectColumnSumToBeBetween(column=column, min_value=low, description=description, **options)
