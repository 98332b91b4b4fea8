"""Scores after steps, from counts of parts, against the steps on the map itself."""

from __future__ import annotations

import numpy as np
import pytest

from maskmed_zoo.evaluation.metrics.dice import dice_per_label
from maskmed_zoo.inference.postprocessing import Postprocessing, Step
from maskmed_zoo.labels import Labels
from maskmed_zoo.postprocessing.candidates import candidates
from maskmed_zoo.postprocessing.counts import CaseCounts, counts_of
from tests.inference.test_postprocessing import SPACING, blobs

LABELS = Labels({"background": 0, "liver": 1, "spleen": 2, "tumour": 3, "ignore": 4})
NAMES = list(LABELS.foreground)
RULES: list[tuple[Step, ...]] = [
    (),
    *[(Step(label="liver", do="remove_small", below_mm3=volume),) for volume in (1.0, 4.0, 1e6)],
    (Step(label="liver", do="keep_largest"),),
]


def test_dice_is_that_of_the_maps() -> None:
    """With and without filled holes, for every rule, and with voxels to ignore; labels do not touch each other."""
    differ = 0
    for seed in range(6):
        ours, reference = blobs(seed), blobs(100 + seed)
        reference[(ours == reference) & (blobs(200 + seed) == 2)] = 4
        reference = np.where(blobs(300 + seed) < 2, ours, reference)
        counts = counts_of(ours.copy(), reference, LABELS, NAMES, SPACING)
        for name in NAMES:
            for rules in RULES:
                for fill in ((), (Step(label="liver", do="fill_holes"),)):
                    steps = tuple(step.model_copy(update={"label": name}) for step in (*fill, *rules))
                    after = Postprocessing(steps, LABELS).apply(ours.copy(), SPACING)
                    expected = dice_per_label(after, reference, [LABELS[name]], ignore=4)[LABELS[name]]
                    assert counts[name].dice(steps) == pytest.approx(expected, abs=1e-12)
                    differ += counts[name].dice(steps) != counts[name].dice()
    assert differ > 50


def test_labels_that_one_side_or_neither_has() -> None:
    some, none = np.zeros((3, 4, 5), np.uint8), np.zeros((3, 4, 5), np.uint8)
    some[1, 1, 1] = 1
    largest, gone = [Step(label="liver", do="keep_largest")], [Step(label="liver", do="remove_small", below_mm3=9.0)]
    for ours, reference, expected in ((some, none, (0, 0, 1)), (none, some, (0, 0, 0)), (none, none, (1, 1, 1))):
        counts = counts_of(ours.copy(), reference, LABELS, ["liver"], SPACING)["liver"]
        assert (counts.dice(), counts.dice(largest), counts.dice(gone)) == expected


def test_candidates_take_their_sizes_from_the_references() -> None:
    """Parts of 1, 2, …, 21 voxels of 0.5 mm³: the 5 % quantile is that of two."""
    reference = np.zeros((43, 3, 23), np.uint8)
    for size in range(1, 22):
        reference[2 * size - 1, 1, 1 : 1 + size] = 1
    counts = counts_of(np.zeros_like(reference), reference, LABELS, ["liver", "spleen"], SPACING)
    case = CaseCounts("a", "a", counts)
    steps = candidates([case], "liver")
    assert [step.do for step in steps] == ["fill_holes", "remove_small", "keep_largest", "remove_small"]
    assert [step.below_mm3 for step in steps[1::2]] == pytest.approx([0.1, 1.0])
    assert [step.do for step in candidates([case], "spleen")] == ["fill_holes", "keep_largest"]
    assert [step.do for step in candidates([case], "tumour")] == ["fill_holes", "keep_largest"]
