"""The data sets of one training run: which cases each of them gives, and what these are called side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maskmed_zoo.data.case import Case
from maskmed_zoo.data.dataset import RawDataset, Split, open_dataset
from maskmed_zoo.errors import DataError
from maskmed_zoo.files import is_folder

WHOLE = "@all"
"""After a folder's name: all of its cases train, none validates."""

Data = Path | str | Sequence[Path | str]
"""One folder or several, each perhaps with `WHOLE` after it."""


@dataclass(frozen=True)
class Source:
    """A data set, whether all of it trains, and what is put before its cases' names to tell them from others'."""

    dataset: RawDataset
    is_whole: bool = False
    prefix: str = ""

    @property
    def title(self) -> str:
        """The data set's name, with `WHOLE` where all of it trains."""
        return f"{self.dataset.name}{WHOLE if self.is_whole else ''}"

    def splits(self, fold: int) -> Split:
        """Training and validation cases; `DataError` as of `RawDataset.splits`."""
        return Split(self.dataset.cases, ()) if self.is_whole else self.dataset.splits(fold)

    def name_of(self, case: Case) -> str:
        """What the case is called in the run: its identifier, unique among all data sets of the run."""
        return f"{self.prefix}{case.identifier}"

    def record(self, cases: Sequence[Case]) -> dict[str, Any]:
        """For a run's manifest: how the data set takes part, its own labels, and those annotated in partial cases."""
        return {
            "name": self.dataset.name,
            "cases": "all" if self.is_whole else "fold",
            "prefix": self.prefix,
            "labels": dict(self.dataset.labels),
            "annotated": {case.identifier: sorted(case.annotated) for case in cases if case.annotated is not None},
        }


def gone(record: Mapping[str, Any]) -> str:
    """What is to be said where a run's data set is not where its manifest has it."""
    return (
        f"{record['path']}: no such folder any more, where the run's data set '{record['name']}' was; say with "
        f"--data (data= in Python) where it is now"
    )


def open_sources(data: Data, *, whole: bool = False, must_validate: bool = True) -> tuple[Source, ...]:
    """Open `DIR` or `DIR@all`, one or several; `whole`: as if all were `DIR@all`.

    Where a data set has a case that an earlier one has too, its cases are called `FOLDER_CASE`. Raises `DataError` as
    `open_dataset` does, and if no data set is given, one is given twice, names clash still, or none of them validates
    though one of them must.
    """
    given = [str(path) for path in ([data] if isinstance(data, str | Path) else data)]
    sources: list[Source] = []
    taken: set[str] = set()
    for text in given:
        source = _open(text)
        if whole:
            source = replace(source, is_whole=True)
        root = source.dataset.root.resolve()
        if root in (other.dataset.root.resolve() for other in sources):
            raise DataError(f"{root}: given twice; name each data set once")
        if taken & _names(source):
            source = replace(source, prefix=f"{root.name}_")
        if clash := taken & _names(source):
            raise DataError(f"{root}: an earlier data set has a case '{min(clash)}' too; rename the folder")
        taken |= _names(source)
        sources.append(source)
    if not sources or (must_validate and all(source.is_whole for source in sources)):
        raise DataError(f"{', '.join(given) or 'data'}: no data set validates; give one without {WHOLE}")
    return tuple(sources)


def check_disjoint(sources: Sequence[Source], splits: Mapping[int, Sequence[Split]]) -> None:
    """Raise `DataError` where a case validates in two folds: it would count twice."""
    seen: dict[str, int] = {}
    for fold, parts in sorted(splits.items()):
        for source, split in zip(sources, parts, strict=True):
            for case in split.validation:
                name = source.name_of(case)
                if (other := seen.setdefault(name, fold)) != fold:
                    raise DataError(
                        f"{source.dataset.root}: case '{name}' validates in folds {other} and {fold}, and would count "
                        f"twice in a score over folds; give --folds that share no validation case"
                    )


def _open(text: str) -> Source:
    is_whole = text.endswith(WHOLE) and not is_folder(Path(text))
    return Source(open_dataset(text.removesuffix(WHOLE) if is_whole else text), is_whole)


def _names(source: Source) -> set[str]:
    return {source.name_of(case) for case in source.dataset.cases}
