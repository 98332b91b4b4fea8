"""Which cases train and which validate, fold by fold.

Source: nnU-Net v2. Its default split is scikit-learn's `KFold(5, shuffle=True, random_state=12345)` over the sorted
identifiers, written out here. Deviation: a data set of fewer than five cases gets as many folds as cases.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskmed_zoo.errors import DataError, nearest
from maskmed_zoo.files import read_json


@dataclass(frozen=True)
class Fold:
    """Names of the cases that train, and of those that validate."""

    training: list[str]
    validation: list[str]


Folds = list[Fold]


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


def read_folds(source: Path, known: Collection[str]) -> Folds:
    """The folds of a `splits_final.json`; raises `DataError` for unknown or repeated cases and for empty sides."""
    content = read_json(source)
    folds: Folds = []
    try:
        folds = [Fold([str(n) for n in fold["train"]], [str(n) for n in fold["val"]]) for fold in content]
    except (TypeError, KeyError) as error:
        raise DataError(f'{source}: expected a list of folds like {{"train": […], "val": […]}}') from error
    for index, fold in enumerate(folds):
        train, val = fold.training, fold.validation
        where = f"{source}: fold {index}"
        if not train or not val:
            raise DataError(f"{where} has {len(train)} training and {len(val)} validation cases; each side needs one")
        for name in (*train, *val):
            if name not in known:
                raise DataError(f"{where} names unknown case '{name}'{nearest(name, known)} remove it or add its files")
        if overlap := sorted(set(train) & set(val)):
            raise DataError(
                f"{where} has '{overlap[0]}' in train and val ({len(overlap)} such); keep it in one of them"
            )
        for side in (train, val):
            if len(set(side)) != len(side):
                raise DataError(f"{where} names a case twice in one list; remove the repetition")
    return folds
