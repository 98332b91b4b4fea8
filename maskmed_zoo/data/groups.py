"""Cases of one patient: `groups.json` says which belong together.

```
{"CASE": "PATIENT", …}, every case listed
```
Scans of one patient resemble each other, so an interval that takes them for independent is too narrow. Nothing but
intervals and tests depends on the file.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

from maskmed_zoo.data.names import hint
from maskmed_zoo.errors import DataError
from maskmed_zoo.files import read_json

GROUPS = "groups.json"


def read_groups(source: Path, cases: Collection[str]) -> dict[str, str]:
    """The patient of each of `cases`, from a groups.json, which may list others too.

    Raises `DataError` for content of another form and for a case that is not listed.
    """
    content = read_json(source)
    if not isinstance(content, dict):
        raise DataError(f'{source}: expected an object of patients by case; write {{"case_01": "patient_1", …}}')
    listed = cast(dict[str, Any], content)
    for case in cases:
        if case not in listed:
            raise DataError(f"{source}: case '{case}' is not listed{hint(case, listed)}; add its patient")
        if not isinstance(listed[case], str):
            raise DataError(f"{source}: case '{case}' has {listed[case]!r}, expected its patient; write a text")
    return {case: listed[case] for case in cases}
