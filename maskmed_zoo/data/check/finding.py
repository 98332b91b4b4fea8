"""A row of what a check of a data set found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from maskmed_zoo.data.problem import Kind, ProblemError
from maskmed_zoo.errors import printable

Severity = Literal["error", "remark"]
_REMARKS: set[Kind] = {
    *("no foreground", "absent label", "duplicate image", "spacing", "shape", "orientation", "intensity"),
}


@dataclass(frozen=True)
class Finding:
    """One problem of a data set.

    `case` is empty where no single case has it. `file` is relative to the data set's folder where it lies in it.
    An "error" is what training would refuse or take wrongly, a "remark" what is unlike the other cases, or of no use,
    and may be meant so.
    """

    case: str
    file: str
    kind: Kind
    severity: Severity
    problem: str
    remedy: str

    def to_dict(self) -> dict[str, str]:
        """The fields by name, for JSON."""
        return asdict(self)


def finding_of(problem: ProblemError, root: Path, *, severity: Severity | None = None) -> Finding:
    """The row for a problem; by its kind it is an error or a remark, where nothing else is said."""
    path = problem.path.relative_to(root) if problem.path.is_relative_to(root) else problem.path
    what, remedy = (printable(text.replace(f"{root}/", "")) for text in (problem.what, problem.remedy))
    severity = severity or ("remark" if problem.kind in _REMARKS else "error")
    return Finding(problem.case, str(path), problem.kind, severity, what, remedy)
