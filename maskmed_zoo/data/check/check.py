"""Every problem of a data set in one list, and not only the first that training would meet.

Idea: what training refuses is found by the same functions that refuse it; what it would take without a word, outliers,
duplicates, empty label maps, is compared over all cases. A case's arrays are gone before the next one is read, so
memory is that of one case for each worker.
Source of the list of checks: nnU-Net v2's `verify_dataset_integrity.py`, which asks for files, shapes, spacings, NaN
and label values, and stops at missing files; the rest is added here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from maskmed_zoo.data.check.case import Examined, examine
from maskmed_zoo.data.check.duplicates import duplicates
from maskmed_zoo.data.check.finding import Finding, finding_of
from maskmed_zoo.data.check.outliers import outliers
from maskmed_zoo.data.dataset import SPLITS, RawDataset, open_dataset
from maskmed_zoo.data.normalize import schemes
from maskmed_zoo.data.over_cases import Progress, over_cases
from maskmed_zoo.data.problem import ProblemError, problem_of
from maskmed_zoo.data.splits import Folds, default_folds, read_folds
from maskmed_zoo.errors import ArgumentError, DataError
from maskmed_zoo.files import reading_threads

Say = Callable[[str], None]


def check_data(
    root: str | Path, *, workers: int | None = None, progress: Progress | None = None, say: Say | None = None
) -> list[Finding]:
    """All findings in a raw folder, by case; those of no case come last.

    `workers` threads read cases (default: one for each core, up to eight), `progress(done, total)` counts them, and
    `say` is told what dataset.json says to no effect. Raises `DataError` for a folder that is no data set, or whose
    dataset.json cannot be used, and `ArgumentError` for a number of workers below 1.
    """
    if workers is not None and workers < 1:
        raise ArgumentError(f"workers: expected 1 or more, got {workers}")
    problems: list[ProblemError] = []
    dataset = open_dataset(root, tell=problems.append)
    if say is not None:
        for line in dataset.remarks:
            say(line)
    by_channel = schemes("auto", dataset.channels)
    cases = over_cases(
        dataset.cases,
        lambda case: examine(case, dataset, by_channel),
        workers=workers or reading_threads(),
        progress=progress,
    )
    problems += [problem for facts in cases for problem in facts.problems]
    problems += [*outliers(cases, dataset), *_absent(cases, dataset)]
    folds = _folds(dataset, problems)
    found = [finding_of(problem, dataset.root) for problem in problems]
    for problem, is_divided in duplicates(cases, folds):
        found.append(finding_of(problem, dataset.root, severity="error" if is_divided else "remark"))
    return sorted(found, key=lambda finding: (not finding.case, finding.case))


def _absent(cases: Sequence[Examined], dataset: RawDataset) -> Iterator[ProblemError]:
    """Labels that no case has, provided that label maps could be read at all."""
    there = {value for facts in cases for value in facts.labels}
    for name, value in dataset.labels.foreground.items() if there else ():
        if value not in there:
            what = f"'{name}' ({value}) is in no case"
            remedy = "remove it from labels, or look whether it has another value in the label maps"
            yield ProblemError(dataset.root / "dataset.json", what, remedy, kind="absent label")


def _folds(dataset: RawDataset, problems: list[ProblemError]) -> Folds:
    """The folds of the data set, as far as they can be read; what is wrong with them is added to the problems."""
    names = sorted(case.identifier for case in dataset.cases)
    source = dataset.root / SPLITS
    if source.exists():
        return read_folds(source, names, tell=problems.append)
    try:
        return default_folds(names, dataset.root)
    except DataError as error:
        problems.append(problem_of(error, dataset.root, "splits"))
        return []
