"""The same voxels in two cases: counted twice, or trained on and validated on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from maskmed_zoo.data.check.case import Examined
from maskmed_zoo.data.problem import ProblemError
from maskmed_zoo.data.splits import Folds


def duplicates(cases: Sequence[Examined], folds: Folds) -> Iterator[tuple[ProblemError, bool]]:
    """For each image that an earlier file has too: the problem, and whether a score would be wrong because of it.

    That is where one of the two trains and the other validates in some fold. Orientation in the file makes no
    difference, nor does the header; constant images are not compared.
    """
    seen: dict[str, tuple[Path, str]] = {}
    for facts in cases:
        case = facts.case.identifier
        for path, content in facts.contents:
            if content not in seen:
                seen[content] = path, case
                continue
            first, other = seen[content]
            numbers = [n for n, fold in enumerate(folds) if _is_divided(case, other, fold.training, fold.validation)]
            what = f"the same voxels as {first}"
            if path == first:  # listed twice in dataset.json
                what = "the same file for two channels" if case == other else f"the same file as for case '{other}'"
            if numbers:
                shown = f"fold{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
                what += f"; in {shown} one of them trains and the other validates"
            remedy = "keep one of them, or put both on one side of every fold"
            if case == other:
                remedy = "export the channel again, or describe one channel less"
            yield ProblemError(path, what, remedy, kind="duplicate image", case=case), bool(numbers)


def _is_divided(one: str, other: str, training: Sequence[str], validation: Sequence[str]) -> bool:
    return (one in training and other in validation) or (other in training and one in validation)
