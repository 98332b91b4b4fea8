"""A study on disk: a folder of runs, one per fold of the same data sets and recipe.

```
STUDY/fold_0/ fold_1/ …          runs; beside each what its job left, see `runner.job`
STUDY/evaluation.json, .csv, .png    their cases together, see `runner.study_scores`
```
Nothing else makes a folder a study, so runs that were trained one by one can be put together to one.
"""

from __future__ import annotations

import re
from pathlib import Path

from maskmed_zoo.files import is_file, is_folder
from maskmed_zoo.weights.card import RECIPE


def fold_path(study: Path, fold: int) -> Path:
    """Where the run of a fold lies."""
    return study / f"fold_{fold}"


def runs_at(path: Path) -> list[Path]:
    """The folders of the runs of a study; of a run, and of any other folder, that itself."""
    return [*folds_in(path).values()] or [path]


def folds_in(path: Path) -> dict[int, Path]:
    """The runs of a study by fold, in their order; none for a run and for any other folder."""
    if not is_folder(path) or is_file(path / RECIPE):
        return {}
    found: dict[int, Path] = {}
    for inner in path.iterdir():
        name = re.fullmatch(r"fold_(0|[1-9]\d{0,3})", inner.name)
        if name and is_file(inner / RECIPE):
            found[int(name[1])] = inner
    return dict(sorted(found.items()))
