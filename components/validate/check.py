"""Great Expectations at work: nothing is sent anywhere, nothing is written anywhere, no bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import great_expectations as gx
import numpy as np
from great_expectations.core import ExpectationValidationResult
from great_expectations.data_context import AbstractDataContext
from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults, ProgressBarsConfig

from components.validate.suites import Checked

# Rows at fault that are named.
_EXAMPLES = 3
# Characters of a value that are shown.
_SHOWN = 80


@dataclass(frozen=True)
class Finding:
    """What came of one expectation.

    Attributes:
        rows: what was checked: the name of the `Checked`.
        expectation: type of the expectation, as Great Expectations names it.
        column: the column(s) it is about, empty for the table as a whole.
        severity: `critical`, `warning` or `info`, should it fail.
        observed: the observed value, where the expectation is about the column or table as a whole.
        checked, unexpected: numbers of rows, where it is about each row.
        examples: some of the unexpected rows: their ids and the value.
        result: as Great Expectations gives it.
    """

    rows: str
    expectation: str
    column: str
    description: str
    severity: str
    success: bool
    observed: Any
    checked: int | None
    unexpected: int | None
    examples: list[dict[str, Any]]
    result: ExpectationValidationResult

    def fact(self) -> str:
        """What was found, in words."""
        if self.unexpected is None:
            return f"found {self.observed}"
        examples = "; ".join(", ".join(f"{name} {value}" for name, value in row.items()) for row in self.examples)
        return f"{self.unexpected} of {self.checked} {self.rows}" + (f": {examples}" if examples else "")


def check(suite: Iterable[Checked]) -> list[Finding]:
    """Runs the expectations, in their order.

    Raises:
        RuntimeError: if an expectation could not be evaluated.
    """
    settings = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    context = gx.get_context(mode="ephemeral", project_config=settings)
    return [finding for checked in suite for finding in _run(context, checked)]


def _run(context: AbstractDataContext, checked: Checked) -> Iterator[Finding]:
    name = checked.name
    batches = context.data_sources.add_pandas(name).add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
    expectations = list(checked.expectations)
    # On no rows at all, only the expectation that there are some means anything.
    if checked.rows.empty:
        expectations = [each for each in expectations if each.expectation_type == "expect_table_row_count_to_be_between"]
    suite = context.suites.add(gx.ExpectationSuite(name, expectations=expectations))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batches, suite=suite))
    result = definition.run(
        batch_parameters={"dataframe": checked.rows},
        result_format={
            "result_format": "SUMMARY",
            "partial_unexpected_count": _EXAMPLES,
            "unexpected_index_column_names": list(checked.ids),
        },
    )
    # Great Expectations gives them in an order of its own.
    found = {each.expectation_config.description: each for each in result.results if each.expectation_config}
    for expectation in expectations:
        yield _finding(checked, found[expectation.description])


def _finding(checked: Checked, result: ExpectationValidationResult) -> Finding:
    config, details = result.expectation_config, result.result
    if config is None or result.exception_info.get("raised_exception", True):
        raise RuntimeError(f"{checked.name}: could not be checked: {result.exception_info}")
    arguments = config.kwargs
    columns = arguments.get("column_list") or [arguments[key] for key in ("column", "column_A", "column_B") if key in arguments]
    return Finding(
        rows=checked.name,
        expectation=config.type,
        column=", ".join(columns),
        description=str(config.description),
        severity=str(config.severity.value),
        success=bool(result.success),
        observed=_plain(details.get("observed_value")),
        checked=details.get("element_count"),
        unexpected=details.get("unexpected_count"),
        examples=[
            {key: _plain(row[key]) for key in (*checked.ids, *sorted(row.keys() - set(checked.ids)))}
            for row in details.get("partial_unexpected_index_list") or []
        ],
        result=result,
    )


def _plain(value: Any) -> Any:
    """The value as JSON can hold it, short."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return shortened(str(value))


def shortened(text: str) -> str:
    """Enough of a text to know it by, never a story."""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
