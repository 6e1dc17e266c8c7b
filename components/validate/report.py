"""The validation folder: `results.json` for programs, `index.html`, the Data Docs, for people."""

from __future__ import annotations

import copy
import html
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import great_expectations as gx
from great_expectations.core import ExpectationValidationResult
from great_expectations.render.components import RenderedSectionContent
from great_expectations.render.renderer.content_block import ValidationResultsTableContentBlockRenderer
from great_expectations.render.view import DefaultJinjaSectionView

from components.validate.check import Finding, shortened

SEVERITIES = {"critical": "Must hold", "warning": "Should hold", "info": "Good to know"}
# Great Expectations draws its icons with a font from the network; here they are characters.
_STYLE = """
:root{color-scheme:light dark}body{font:16px/1.5 Georgia,serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1,h2,h3,h5,h6{font-weight:normal}table{border-collapse:collapse}td,th{padding:.2rem 1rem .2rem 0;text-align:left}
td{vertical-align:top}.fa-check-circle::before{content:"\\2714"}.fa-times::before{content:"\\2718"}
.text-success{color:#2a7f3f}i.text-danger{color:#c0392b}i{font-style:normal}td table{font-size:.85em;opacity:.8}
small{opacity:.7}
"""


def passed(findings: Sequence[Finding]) -> bool:
    """Whether nothing critical failed."""
    return not any(finding.severity == "critical" and not finding.success for finding in findings)


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first."""
    return sorted(findings, key=lambda finding: list(SEVERITIES).index(finding.severity))


def write(folder: Path, suite: str, findings: Sequence[Finding], digests: Mapping[str, str]) -> None:
    """Writes both files. `digests` are those of the tables that were checked."""
    folder.mkdir()
    names = ("rows", "expectation", "column", "description", "severity", "success")
    numbers = ("observed", "checked", "unexpected", "examples")
    results = {
        "passed": passed(findings),
        "suite": suite,
        "inputs": dict(digests),
        "expectations": [{name: getattr(finding, name) for name in names + numbers} for finding in findings],
    }
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")
    (folder / "index.html").write_text(_page(suite, findings, digests), encoding="utf-8")


def _page(suite: str, findings: Sequence[Finding], digests: Mapping[str, str]) -> str:
    verdict = "passed" if passed(findings) else "failed"
    failed = [finding for finding in by_severity(findings) if not finding.success]
    lines = [
        f"<li>{finding.severity}: {html.escape(finding.description)} <small>{html.escape(finding.fact())}</small></li>"
        for finding in failed
    ]
    checked = "".join(f"<br>{html.escape(name)} <code>{value}</code>" for name, value in digests.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Validation: {suite}</title><style>{_STYLE}</style>'
        f"<h1>Validation of {suite}: {verdict}</h1>"
        + (f"<ul>{''.join(lines)}</ul>" if lines else "<p>All expectations hold.</p>")
        + _tables(findings)
        + f"<p><small>Great Expectations {gx.__version__}. Checked, by MD5 as DVC computes it:{checked}</small></p></html>\n"
    )


def _tables(findings: Sequence[Finding]) -> str:
    """The tables of Great Expectations: one for what was checked and severity."""
    view, number = DefaultJinjaSectionView(), itertools.count(1)
    parts: list[str] = []
    for rows in dict.fromkeys(finding.rows for finding in findings):
        parts.append(f"<h2>{rows.capitalize()}</h2>")
        for severity, heading in SEVERITIES.items():
            results = [_escaped(f.result) for f in findings if (f.rows, f.severity) == (rows, severity)]
            if results:
                block = ValidationResultsTableContentBlockRenderer.render(results, include_column_name=False)
                section = RenderedSectionContent(content_blocks=[block])
                place = {"index": next(number)}
                parts.append(f"<h3>{heading}</h3>")
                parts.append(view.render({"section": section.to_json_dict(), "section_loop": place, "loop": place}))
    return "".join(parts)


def _escaped(result: ExpectationValidationResult) -> ExpectationValidationResult:
    """A copy whose values are short and safe in HTML: Great Expectations writes them as they are."""
    result = copy.deepcopy(result)
    result.result = _escape(result.result)
    return result


def _escape(value: Any) -> Any:
    if isinstance(value, str):
        return html.escape(shortened(value))
    if isinstance(value, Mapping):
        return {key: _escape(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escape(each) for each in value]
    return value
