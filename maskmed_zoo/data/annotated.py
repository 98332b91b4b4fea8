"""Partial labels: `annotated.json` says which labels were annotated in each case.

```
{"CASE": [values of the labels that were annotated], …}, every case listed
```
A voxel of value 0 may be background, or any label that was not annotated in its case.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

from maskmed_zoo.data.formats import stem_of
from maskmed_zoo.data.names import hint
from maskmed_zoo.data.problem import ProblemError, Tell, problem_of, refuse
from maskmed_zoo.errors import DataError
from maskmed_zoo.files import read_json
from maskmed_zoo.labels import Labels

ANNOTATED = "annotated.json"


def annotated_labels(
    source: Path, labels: Labels, cases: Collection[str], *, others: bool = False, tell: Tell = refuse
) -> dict[str, frozenset[str]]:
    """Names of the labels annotated in each case of an annotated.json, which lists all of `cases` and no `others`.

    A case left out is refused, not taken for complete: that mistake would teach the network that there is nothing.
    Tells of that, of content of another form, and of values that are no foreground label.
    """

    def told(case: str, what: str, remedy: str) -> None:
        tell(ProblemError(source, what, remedy, kind="annotated labels", case=case))

    try:
        content = read_json(source)
        if not isinstance(content, dict):
            raise DataError(f'{source}: expected an object of label values by case; write {{"case_01": [1, 2], …}}')
    except DataError as error:
        tell(problem_of(error, source, "annotated labels"))
        return {}
    names = {value: name for name, value in labels.foreground.items()}
    listed: dict[str, frozenset[str]] = {}
    for case, values in cast(dict[str, Any], content).items():
        if case not in cases and not others:
            told(case, f"no case '{case}'{hint(case, cases)}", "remove it or add its files")
        if not isinstance(values, list) or not values or any(type(v) is not int for v in cast(list[Any], values)):
            told(case, f"case '{case}' has {values!r}, expected the label values that are annotated", "write [1, 2]")
            listed[case] = frozenset(labels.foreground)
            continue
        for value in cast(list[int], values):
            if value not in names:
                known = ", ".join(f"{v} {name}" for v, name in sorted(names.items()))
                told(case, f"case '{case}' lists {value}, which is no label ({known})", "correct it there")
        listed[case] = frozenset(names[value] for value in cast(list[int], values) if value in names)
    for case in cases:
        if case not in listed:
            remedy = f"add the label values annotated in it, {sorted(names)} if it is complete"
            told(case, f"case '{case}' is not listed{hint(case, listed)}", remedy)
    return listed


def check_annotated(
    values: Collection[int], path: Path, labels: Labels, annotated: Collection[str], *, tell: Tell = refuse
) -> None:
    """Tell if a label map of `values` at `path` holds a label that is not among those annotated."""
    for name, value in labels.foreground.items():
        if value in values and name not in annotated:
            case = stem_of(path)
            what = f"voxels of '{name}' ({value}), which {ANNOTATED} does not list for case '{case}'"
            remedy = f"list {value} there or remove the voxels"
            tell(ProblemError(path, what, remedy, kind="annotated labels", case=case))
