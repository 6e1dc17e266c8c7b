"""The step: from tables to the validation folder. Bad data is a result, written and told; the steps that follow refuse it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from components.contracts import DEVIATIONS, PAIRS, RESPONSES, Table, atomic
from components.lineage import digest
from components.params import ParameterError
from components.validate.check import Finding, check
from components.validate.features import identities, pair_identities, response_features
from components.validate.params import Params
from components.validate.report import by_severity, passed, write
from components.validate.suites import responses_suite, weights_suite

log = logging.getLogger("polyphony")
# Rows whose texts are in memory at a time.
_BATCH = 512


def run(
    *,
    validate: Params,
    suite: str,
    responses: Path,
    deviations: Path | None = None,
    pairs: Path | None = None,
    validation: Path,
) -> dict[str, Any]:
    """Writes `validation` and returns counts, also where the data fails: `contracts.require_passed` stops who reads on.

    Raises:
        ParameterError: if the suite `weights` is not given `deviations` and `pairs`.
    """
    if suite == "responses":
        read = {"responses": responses}
        checked = responses_suite(_features(RESPONSES, responses, response_features), validate)
    else:
        if deviations is None or pairs is None:
            raise ParameterError("--suite weights needs --deviations and --pairs.")
        read = {"responses": responses, "deviations": deviations, "pairs": pairs}
        checked = weights_suite(
            _features(RESPONSES, responses, identities),
            DEVIATIONS.read(deviations, DEVIATIONS.column_names()).to_pandas(),
            _features(PAIRS, pairs, pair_identities),
            validate,
        )
    findings = check(checked)
    with atomic(validation) as folder:
        write(folder, suite, findings, {name: digest(path) for name, path in read.items()})
    _tell(suite, findings, validation)
    failed = [finding.severity for finding in findings if not finding.success]
    return {
        "passed": int(passed(findings)),
        "expectations": len(findings),
        "failed": {severity: failed.count(severity) for severity in ("critical", "warning", "info")},
    }


def _features(table: Table, path: Path, features: Callable[[pa.RecordBatch], pd.DataFrame]) -> pd.DataFrame:
    with tqdm(total=table.count(path), desc=f"validate {table.name}", unit="row", mininterval=1) as bar:
        parts = []
        for batch in table.batches(path, table.column_names(), rows=_BATCH):
            parts.append(features(batch))
            bar.update(batch.num_rows)
    return pd.concat(parts, ignore_index=True) if parts else features(pa.RecordBatch.from_pylist([], table.schema()))


def _tell(suite: str, findings: list[Finding], validation: Path) -> None:
    levels = {"critical": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO}
    for finding in by_severity(findings):
        if not finding.success:
            log.log(levels[finding.severity], "%s: %s (%s)", finding.severity, finding.description, finding.fact())
    if passed(findings):
        log.info("%s: passed; see %s", suite, validation / "index.html")
    else:
        log.error("%s: FAILED; the steps after this one will refuse the data; see %s", suite, validation / "index.html")
