"""Which cases train and which validate, fold by fold.

Source: nnU-Net v2. Its default split is scikit-learn's `KFold(5, shuffle=True, random_state=12345)` over the sorted
identifiers, written out here. Deviation: a data set of fewer than five cases gets as many folds as cases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from maskmed_zoo.data.names import hint
from maskmed_zoo.data.problem import ProblemError, Tell, problem_of, refuse
from maskmed_zoo.errors import DataError
from maskmed_zoo.files import read_json


@dataclass(frozen=True)
class Fold:
    """Names of the cases that train, and of those that validate."""

    training: list[str]
    validation: list[str]


Folds = list[Fold]
_FORM = '[{"train": ["case_1", …], "val": ["case_2", …]}, …]'


def default_folds(names: list[str], root: Path) -> Folds:
    """nnU-Net's seeded folds over sorted names; raises `DataError` if the data set at `root` has fewer than two."""
    if len(names) < 2:
        raise DataError(
            f"{root}: {len(names)} case cannot be split into training and validation; at least 2 are needed"
        )
    count = min(5, len(names))
    order = np.arange(len(names))
    np.random.RandomState(12345).shuffle(order)  # the legacy generator is what scikit-learn's KFold draws from
    folds: Folds = []
    for part in np.array_split(order, count):  # the first len % count parts are one longer, as in KFold
        chosen = set(part.tolist())
        folds.append(Fold([n for i, n in enumerate(names) if i not in chosen], [names[i] for i in sorted(chosen)]))
    return folds


def read_folds(source: Path, known: Collection[str], *, tell: Tell = refuse) -> Folds:
    """The folds of a `splits_final.json`, perhaps none.

    Tells of content of another form, unknown or repeated cases, and empty sides.
    """
    try:
        content = read_json(source)
        if not isinstance(content, list):
            raise DataError(f"{source}: holds {_kind(content)}, expected a list of folds: {_FORM}")
        folds = [_fold(fold, f"{source}: fold {index}") for index, fold in enumerate(cast(list[Any], content))]
    except DataError as error:
        tell(problem_of(error, source, "splits"))
        return []
    for index, fold in enumerate(folds):
        train, val = fold.training, fold.validation

        def told(what: str, remedy: str, case: str = "", index: int = index) -> None:
            tell(ProblemError(source, f"fold {index} {what}", remedy, kind="splits", case=case))

        if not train or not val:
            told(f"has {len(train)} training and {len(val)} validation cases", "each side needs one")
        for name in dict.fromkeys((*train, *val)):
            if name not in known:
                told(f"names unknown case '{name}'{hint(name, known)}", "remove it or add its files", name)
        if overlap := sorted(set(train) & set(val)):
            what = f"has '{overlap[0]}' in train and val ({len(overlap)} such)"
            told(what, "keep it in one of them", overlap[0])
        for side in (train, val):
            for name, count in Counter(side).items():
                if count > 1:
                    told(f"names the case '{name}' twice in one list", "remove the repetition", name)
    return folds


def _fold(content: Any, where: str) -> Fold:
    """One entry of the list; raises `DataError` unless it holds two lists of text."""
    sides = cast(dict[str, Any], content) if isinstance(content, dict) else {}
    if "train" not in sides or "val" not in sides:
        found = f"has the keys {sorted(sides)}" if sides else f"is {_kind(content)}"
        raise DataError(f"{where} {found}, expected a list of folds: {_FORM}")
    for side in ("train", "val"):
        names = sides[side]
        if not isinstance(names, list):
            raise DataError(f"{where} has {_kind(names)} as '{side}', expected a list of case names: {_FORM}")
        for name in cast(list[Any], names):
            if not isinstance(name, str):
                raise DataError(f"{where} has {_kind(name)} in '{side}', expected names of cases, as text: {_FORM}")
    return Fold(sides["train"], sides["val"])


def _kind(content: Any) -> str:
    """What somebody wrote, in the words of JSON."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(content), f"the number {content}")
