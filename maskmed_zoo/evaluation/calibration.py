"""Whether probabilities mean what they say: Brier score, calibration error and reliability curve of voxels.

Of voxels to which a label was given with probability p, a share of p should have it. Voxels are counted in bins of
equal width by p; the expected calibration error (ECE) is the mean over voxels of how far the share is from the mean p
of their bin. Every label is taken alone, one against the rest; besides, each voxel's most probable label. Voxels of the
reference's 'ignore' are left out, all others count.

Source: Brier 1950; Naeini et al. 2015 and Guo et al. 2017 (arXiv 1706.04599) for the most probable label. Compared in
the tests with scikit-learn and torchmetrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.errors import DataError

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair

Probabilities = Iterable[tuple[str, NDArray[np.floating[Any]]]]
"""Of every label but 'ignore', background included: its name and its probabilities (z y x); one after the other, so
that there is one in memory at a time."""
CHUNK_VOXELS = 2**20
"""Voxels counted at a time."""
DEFINITION = (
    "voxels of all cases together, those of 'ignore' left out, in bins of equal width by the probability that a label "
    "has there. probability is the mean of a bin, frequency the share of its voxels that have the label in the "
    "reference. ece is the mean over voxels of |frequency - probability| of their bin, brier the mean of (p - y)², y "
    "being 1 where the reference has the label and else 0. labels: each label alone, in cases where it was "
    "annotated. most_probable: the label with the largest probability at each voxel, and whether the reference "
    "has it there, in cases in which all labels were annotated; its brier is the sum of the labels' with background"
)


@dataclass(frozen=True, eq=False)
class Reliability:
    """Voxels by the probability that something had there: their number, that of hits, and the sum of p in each bin (n).

    `squares` is the sum of (p - y)² over all of them.
    """

    voxels: NDArray[np.int64]
    hits: NDArray[np.int64]
    probability: NDArray[np.float64]
    squares: float

    @classmethod
    def of(cls, p: NDArray[np.floating[Any]], hit: NDArray[np.bool_], bins: int) -> Reliability:
        """Of voxels (…) with probabilities p, of which some are hits."""
        found, p, hit = cls.none(bins), p.ravel(), hit.ravel()
        for start in range(0, p.size, CHUNK_VOXELS):
            given = p[start : start + CHUNK_VOXELS].astype(np.float64)
            y = hit[start : start + CHUNK_VOXELS]
            places = np.minimum((given * bins).astype(np.int64), bins - 1)
            voxels, hits = np.bincount(places, minlength=bins), np.bincount(places[y], minlength=bins)
            found += cls(
                voxels, hits, np.bincount(places, given, bins).astype(np.float64), float(((given - y) ** 2).sum())
            )
        return found

    @classmethod
    def none(cls, bins: int) -> Reliability:
        """Of no voxel."""
        return cls(np.zeros(bins, np.int64), np.zeros(bins, np.int64), np.zeros(bins), 0.0)

    @classmethod
    def from_dict(cls, summary: Mapping[str, Any], bins: int) -> Reliability:
        """The inverse of `to_dict`, up to rounding."""
        found, voxels = cls.none(bins), summary["voxels"]
        for row in summary["curve"]:
            place = round(row["from"] * bins)
            found.voxels[place], found.hits[place] = row["voxels"], round(row["frequency"] * row["voxels"])
            found.probability[place] = row["probability"] * row["voxels"]
        return cls(found.voxels, found.hits, found.probability, summary["brier"] * voxels)

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            self.voxels + other.voxels,
            self.hits + other.hits,
            self.probability + other.probability,
            self.squares + other.squares,
        )

    @property
    def total(self) -> int:
        """All voxels."""
        return int(self.voxels.sum())

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]; 0 without a voxel."""
        return float(np.abs(self.hits - self.probability).sum()) / max(1, self.total)

    @property
    def brier(self) -> float:
        """Mean square of p - y, in [0, 1], in `Calibration.most_probable` up to 2, of all labels; 0 without a voxel."""
        return self.squares / max(1, self.total)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: `voxels`, `ece`, `brier` and the `curve`, one entry per bin that has voxels."""
        bins = len(self.voxels)
        curve = [
            {
                "from": index / bins,
                "to": (index + 1) / bins,
                "voxels": int(self.voxels[index]),
                "probability": float(self.probability[index] / self.voxels[index]),
                "frequency": float(self.hits[index] / self.voxels[index]),
            }
            for index in np.flatnonzero(self.voxels).tolist()
        ]
        return {"voxels": self.total, "ece": self.ece, "brier": self.brier, "curve": curve}


@dataclass(frozen=True)
class Calibration:
    """The reliability of every annotated label of a case by name, and of the most probable label of each voxel.

    The latter is None where not all labels were annotated; its `squares` are those of all labels with background.
    """

    labels: dict[str, Reliability]
    most_probable: Reliability | None


def calibration(pair: LabelMapPair, probabilities: Probabilities) -> Calibration:
    """Of a case with probabilities on its voxels.

    Memory: some 13 bytes per voxel, 18 with 'ignore', and the probabilities of one label. Raises `DataError` for
    probabilities that cannot be those of the label map: most voxels that have a label there have another one as the
    most probable.
    """
    bins, names = pair.settings.calibration_bins, list(pair.labels.names)
    counted = None if pair.labels.ignore is None else pair.reference != pair.labels.ignore
    best, winner = np.full(pair.reference.shape, -1.0, np.float32), np.zeros(pair.reference.shape, np.int16)
    labels, squares = dict[str, Reliability](), 0.0
    for name, p in probabilities:
        value = pair.labels[name]
        better = p > best
        best[better], winner[better] = p[better], value
        found = Reliability.of(_only(counted, p), _only(counted, pair.reference == value), bins)
        squares += found.squares
        if name in pair.scored:
            labels[name] = found
    if lacking := [name for name in pair.scored if name not in labels]:
        raise DataError(f"case '{pair.identifier}': no probabilities of {', '.join(lacking)}")
    _check_winner(pair, winner)
    if not set(names[1:]) <= pair.annotated:
        return Calibration(labels, None)
    top = Reliability.of(_only(counted, best), _only(counted, winner == pair.reference), bins)
    return Calibration(labels, Reliability(top.voxels, top.hits, top.probability, squares))


def summarize_calibration(cases: Sequence[Calibration], label_names: Iterable[str]) -> dict[str, Any]:
    """A JSON-able summary: `labels` (name to `Reliability.to_dict`), `most_probable`, None in no case, `definition`."""
    return _summary(
        {name: [case.labels[name] for case in cases if name in case.labels] for name in label_names},
        [case.most_probable for case in cases if case.most_probable is not None],
    )


def pool_calibration(summaries: Sequence[Mapping[str, Any]], label_names: Iterable[str], bins: int) -> dict[str, Any]:
    """One summary of the cases of several, all of so many bins."""
    return _summary(
        {
            name: [Reliability.from_dict(s["labels"][name], bins) for s in summaries if name in s["labels"]]
            for name in label_names
        },
        [Reliability.from_dict(s["most_probable"], bins) for s in summaries if s["most_probable"] is not None],
    )


def _summary(labels: Mapping[str, Sequence[Reliability]], top: Sequence[Reliability]) -> dict[str, Any]:
    return {
        "most_probable": _pooled(top).to_dict() if top else None,
        "labels": {name: _pooled(found).to_dict() for name, found in labels.items() if found},
        "definition": DEFINITION,
    }


def _pooled(found: Sequence[Reliability]) -> Reliability:
    return reduce(Reliability.__add__, found)


def _only(counted: NDArray[np.bool_] | None, array: NDArray[Any]) -> NDArray[Any]:
    return array if counted is None else array[counted]


def _check_winner(pair: LabelMapPair, winner: NDArray[np.int16]) -> None:
    """Raise `DataError` where the label map says something else than its probabilities: turned axes, another image."""
    has_label = pair.prediction > 0
    agreeing = np.count_nonzero(winner[has_label] == pair.prediction[has_label])
    if 2 * agreeing < np.count_nonzero(has_label):
        raise DataError(
            f"case '{pair.identifier}': where its label map has a label, the probabilities are largest for another one "
            f"at most voxels; give those that the label map was made of, on its axes"
        )


def curves(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The curves of a summary by what they are shown as."""
    top = summary["most_probable"]
    return {**({} if top is None else {"most probable label": top}), **summary["labels"]}
