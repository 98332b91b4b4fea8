"""The findings of a check as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from maskmed_zoo.data.check.finding import Finding


def finding_table(findings: Sequence[Finding]) -> Table:
    """A row for each finding: case and kind, file and problem, and what to do; readable from 80 columns on."""
    table = Table(show_lines=True, expand=True)
    table.add_column("case, kind", ratio=3, overflow="fold")
    table.add_column("file, problem", ratio=6, overflow="fold")
    table.add_column("what to do", ratio=4, overflow="fold")
    for finding in findings:
        kind = f"{finding.severity}: {finding.kind}"
        table.add_row(f"{finding.case or '–'}\n{kind}", f"{finding.file}\n{finding.problem}", finding.remedy)
    return table


def summary(findings: Sequence[Finding]) -> str:
    """How many there are, in words."""
    errors = sum(finding.severity == "error" for finding in findings)
    cases = len({finding.case for finding in findings} - {""})
    return f"{_count(errors, 'error')} and {_count(len(findings) - errors, 'remark')} in {_count(cases, 'case')}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
