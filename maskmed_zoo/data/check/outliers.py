"""Cases unlike the others: another grid, another orientation, other intensities where the same label is.

Idea: what is usual is the median over the cases, and how far cases usually are from it the median absolute deviation,
so that a few bad cases do not make themselves usual. Intensities are compared label by label: the foreground as a whole
differs with which labels a case has. Channels that are normalized case by case are compared as the network sees them,
so that scanners with other scales are no outliers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.check.case import Examined
from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.data.image import times
from maskmed_zoo.data.problem import Kind, ProblemError

FEWEST_CASES = 8
"""Of which some can be unlike the others."""
FACTOR = 3.0
"""How many times the median, or its part, a voxel's edge or a number of voxels is at least, to be unusual."""
RAREST = 0.1
"""Share of the cases in the less usual orientations, above which it is no outlier but how the data set is."""
DEVIATIONS = 8.0
"""Robust standard deviations from the median, 1.4826 times the median absolute deviation."""
SPREADS = 2.0
"""Standard deviations of the label's own voxels that intensities must be off besides, to matter."""
_TO_DEVIATIONS = 1.4826
_TINY = 1e-6


def outliers(cases: Sequence[Examined], dataset: RawDataset) -> Iterator[ProblemError]:
    """Remarks on cases that are unlike the others in spacing, shape, orientation or intensities."""
    read = [facts for facts in cases if facts.spacing is not None]
    if len(read) >= FEWEST_CASES:
        yield from _sizes(read, "spacing", "mm", lambda facts: facts.spacing or ())
        yield from _sizes(read, "shape", "voxels", lambda facts: facts.shape or ())
        yield from _orientations(read)
    yield from _intensities(cases, dataset)


def _sizes(
    cases: Sequence[Examined], kind: Kind, unit: str, of: Callable[[Examined], Sequence[float]]
) -> Iterator[ProblemError]:
    usual = [median(sizes) for sizes in zip(*map(of, cases), strict=True)]
    for facts in cases:
        found = of(facts)
        if any(max(a / b, b / a) > FACTOR for a, b in zip(found, usual, strict=True)):
            what = f"{kind} {times(found)} {unit} (z y x), the median of the cases is {times(usual)}"
            remedy = "look at the image: another kind of scan, or a wrong header?"
            yield _remark(facts, what, remedy, kind)


def _orientations(cases: Sequence[Examined]) -> Iterator[ProblemError]:
    (usual, count), *others = Counter(facts.orientation for facts in cases).most_common()
    if sum(number for _, number in others) > RAREST * len(cases):
        return
    for facts in cases:
        if facts.orientation != usual:
            what = f"stored as {facts.orientation}, {count} of {len(cases)} cases as {usual}"
            remedy = "look whether the patient lies in it as in the others: a header is easily wrong"
            yield _remark(facts, what, remedy, "orientation")


def _intensities(cases: Sequence[Examined], dataset: RawDataset) -> Iterator[ProblemError]:
    """The worst label of each channel of a case."""
    worst: dict[Path, tuple[float, str, Examined]] = {}
    for channel, label in sorted({key for facts in cases for key in facts.intensities}):
        having = [facts for facts in cases if (channel, label) in facts.intensities]
        if len(having) < FEWEST_CASES:
            continue
        table = np.array([facts.intensities[channel, label] for facts in having])
        spread = float(np.median(table[:, -1]))
        for index, name in enumerate(("5 % of it lie below", "its mean is", "5 % of it lie above")):
            usual, deviation = _usual(table[:, index], spread)
            limit = max(DEVIATIONS * deviation, SPREADS * spread)
            off = np.abs(table[:, index] - usual)
            for row in np.flatnonzero(off > limit).tolist():
                path, share = having[row].case.images[channel], float(off[row]) / deviation
                if share > worst.get(path, (0.0,))[0]:
                    found = f"{name} {table[row, index]:.4g}, the median {usual:.4g}, expected within {limit:.2g} of it"
                    what = f"{dataset.channels[channel]}: '{label}' is unlike that of the others: {found}"
                    worst[path] = (share, what, having[row])
    for path, (_, what, facts) in worst.items():
        remedy = "look at image and label map together: do they belong together, are the units the others'?"
        yield ProblemError(path, what, remedy, kind="intensity", case=facts.case.identifier)


def _usual(values: NDArray[np.float64], spread: float) -> tuple[float, float]:
    """Median, and robust standard deviation, which is at least a hundredth of the label's own spread."""
    middle = float(np.median(values))
    deviation = _TO_DEVIATIONS * float(np.median(np.abs(values - middle)))
    return middle, max(deviation, spread / 100, _TINY * abs(middle), _TINY)


def _remark(facts: Examined, what: str, remedy: str, kind: Kind) -> ProblemError:
    return ProblemError(facts.case.images[0], what, remedy, kind=kind, case=facts.case.identifier)
