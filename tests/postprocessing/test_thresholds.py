"""From probabilities to what thresholds change, against label maps of all probabilities at once."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from maskmed_zoo.evaluation.metrics.dice import dice_per_label
from maskmed_zoo.inference.postprocessing import Step
from maskmed_zoo.labels import Labels
from maskmed_zoo.postprocessing.choose import choose, cross_fitted, kept, overall
from maskmed_zoo.postprocessing.counts import AtThresholds, CaseCounts, LabelCounts, counts_of
from maskmed_zoo.postprocessing.document import document_of, remarks
from maskmed_zoo.postprocessing.thresholds import GRID, Collector, Undecided, changes_alone

LABELS = Labels({"background": 0, "liver": 1, "spleen": 2, "tumour": 3, "ignore": 4})
SHAPE = (8, 14, 12)


def probabilities(seed: int) -> np.ndarray:
    """(4 z y x) of smooth logits, with borders where several labels are near each other."""
    fields = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(4, *SHAPE)), (0, 2, 2, 2))
    return torch.from_numpy(3 * fields / fields.std()).softmax(0).float().numpy()


def collected(p: np.ndarray, axis: int = 0) -> Undecided:
    """In slabs along an axis, the second of which comes twice."""
    collector = Collector(p.shape[1:])
    for start in (0, 3, 3, 6):
        place = [slice(0, n) for n in p.shape[1:]]
        place[axis] = slice(start, p.shape[axis + 1] if start == 6 else start + 3)
        collector.take((place[0], place[1], place[2]), torch.from_numpy(p)[(slice(None), *place)])
    return collector.result()


def dense(p: np.ndarray, *steps: Step) -> np.ndarray:
    """The label map, from all probabilities in 64 bits; the grid and its noise have no ties."""
    weights = np.ones(4)
    for step in steps:
        weights[LABELS[step.label]] = (1 - (step.at or 0.5)) / (step.at or 0.5)
    return (p.astype(np.float64) * weights.reshape(-1, 1, 1, 1)).argmax(0)


def at(label: str, t: float) -> Step:
    return Step(label=label, do="threshold", at=t)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_few_voxels_give_the_label_map_of_any_thresholds(axis: int, tmp_path: Path) -> None:
    p = probabilities(axis)
    undecided = collected(p, axis)
    assert 0 < len(undecided.voxels) < 0.9 * p[0].size
    undecided.write(tmp_path / "a.npz")
    undecided, differ = Undecided.read(tmp_path / "a.npz"), 0
    for values in product((0.5, *GRID), repeat=3):
        steps = [at(name, t) for name, t in zip(LABELS.foreground, values, strict=True)]
        found = dense(p).ravel()
        found[undecided.voxels] = undecided.winners({LABELS[step.label]: step.weight for step in steps})
        np.testing.assert_array_equal(found, dense(p, *steps).ravel())
        differ += int((found != dense(p).ravel()).sum())
    assert differ > 1000


def test_where_all_is_settled_nothing_is_kept() -> None:
    p = np.zeros((4, *SHAPE), np.float32)
    p[1] = 1
    undecided = collected(p)
    assert len(undecided.voxels) == 0
    assert undecided.winners({1: 4.0}).size == 0
    assert undecided.only(np.zeros(0, bool)).winners({}).size == 0


def test_changes_are_those_of_the_label_maps() -> None:
    """Of every label for every threshold, with voxels to ignore and a label that is not annotated."""
    seen = 0
    for seed in range(4):
        p, reference = probabilities(seed), dense(probabilities(seed), at("liver", 0.3), at("spleen", 0.65))
        reference[np.random.default_rng(seed).random(SHAPE) < 0.1] = 4
        wanted, plain, undecided = ["liver", "spleen"], dense(p), collected(p)
        counts = counts_of(plain.copy(), reference, LABELS, wanted, (1.0, 1.0, 1.0))
        changes = changes_alone(undecided, reference.ravel()[undecided.voxels], counts, LABELS)
        assert list(changes) == [at(name, t) for name in LABELS.foreground for t in GRID]
        before = dice_per_label(plain, reference, [1, 2], ignore=4)
        for step, change in changes.items():
            after = dice_per_label(dense(p, step), reference, [1, 2], ignore=4)
            for name in wanted:
                expected = (after[LABELS[name]] or 0) - (before[LABELS[name]] or 0)
                assert change.get(name, 0.0) == pytest.approx(expected, abs=1e-12)
                seen += expected != 0
    assert seen > 80


def study(gain: float, cost: float, patients: int = 24) -> list[CaseCounts]:
    """A liver that gains about so much at .3 and half of it at .4, while the spleen loses about so much at both."""
    random = np.random.default_rng(0)
    cases: list[CaseCounts] = []
    for index in range(patients):
        labels = {name: _one_part(900) for name in ("liver", "spleen")}
        noise, other, little = random.normal(0, 0.002, 3).tolist()
        changes = {at(name, t): dict[str, float]() for name in labels for t in GRID}
        changes[at("liver", 0.3)] = {"liver": gain + noise, "spleen": -cost + other}
        changes[at("liver", 0.4)] = {"liver": gain / 2 + noise, "spleen": -cost + other}
        changes[at("spleen", 0.6)] = {"spleen": little}

        def together(steps: tuple[Step, ...], labels: dict[str, LabelCounts] = labels) -> dict[str, LabelCounts]:
            return labels | ({"liver": _one_part(950)} if steps == (at("liver", 0.3),) else {})

        cases.append(CaseCounts(f"{index}", f"{index}", labels, AtThresholds(changes, together)))
    return cases


def _one_part(right: int) -> LabelCounts:
    part = np.array([(1000, 1000, right)], np.int64)
    return LabelCounts(part, part, 1000, np.array([1000.0]), 1.0)


NAMES = ["liver", "spleen"]


def test_it_is_said_where_nothing_can_be_kept_and_whose_thresholds_these_are() -> None:
    few, some, many = (
        document_of(study(0.05, 0.0, patients), NAMES, weights="last", sha256="0", date="") for patients in (4, 7, 24)
    )
    (said,) = remarks(few, is_mean=False)
    assert re.fullmatch(r"\d candidates on 4 patients: too few for any step to be kept, .*", said)
    assert not few.steps
    (said,) = remarks(some, is_mean=False)
    assert re.fullmatch(r"\d candidates on 5 patients of other parts: too few .*", said)
    assert remarks(many, is_mean=False) == []
    (said,) = remarks(many, is_mean=True)
    assert said.startswith("thresholds were chosen on the probabilities of single folds")


def test_a_threshold_that_exchanges_labels_is_not_kept() -> None:
    cases = study(0.5, 0.3)
    (row,) = [one for one in choose(cases, NAMES) if (one.step.label, one.step.at) == ("liver", 0.3)]
    assert row.numbers["mean"] > 0
    assert row.numbers["p_holm"] < 0.05
    assert row.verdict == "helps, but at the cost of a label"
    assert not kept(choose(cases, NAMES))


def test_a_threshold_that_helps_is_kept_and_the_best_of_several() -> None:
    cases = study(0.05, 0.0)
    found = choose(cases, NAMES)
    said = {(one.step.label, one.step.at): one for one in found if one.step.kind == "threshold"}
    assert len(said) == 2 * len(GRID)
    assert kept(found) == [at("liver", 0.3)]
    assert said["liver", 0.4].verdict == "helps, but less than the one kept"
    assert said["spleen", 0.6].verdict == "not shown to help"
    assert said["spleen", 0.3].verdict == "changes no score"
    changes = overall(cases, kept(found))
    assert list(changes.values()) == pytest.approx([0.025] * 24), "half of .05, over two labels, with it applied"
    assert cross_fitted(cases, NAMES) == changes


def test_a_gain_at_the_cost_of_another_label_is_none() -> None:
    found = choose(study(0.05, 0.05), NAMES)
    assert kept(found) == []
    row = next(one.numbers for one in found if one.step == at("liver", 0.3))
    assert row["mean"] == pytest.approx(0, abs=0.002)
    assert row["others"] == pytest.approx(-0.05, abs=0.002)
    worse = choose(study(0.02, 0.05), NAMES)
    assert next(one.verdict for one in worse if one.step == at("liver", 0.3)) == "makes it worse"


def test_where_nothing_helps_nothing_is_kept() -> None:
    assert kept(choose(study(0.0, 0.0), NAMES)) == []


def test_a_cost_where_the_label_was_not_annotated_counts() -> None:
    """A liver that gains .02 in every second case, while the spleen loses .03 in all."""
    cases = study(0.02, 0.03)
    partly = [
        CaseCounts(case.name, case.patient, {"spleen": case.labels["spleen"]}, _without_liver(case))
        if index % 2
        else case
        for index, case in enumerate(cases)
    ]
    found = {one.step: one for one in choose(partly, NAMES)}
    row = found[at("liver", 0.3)]
    assert len(row.changes) == len(cases)
    assert row.numbers["mean"] == pytest.approx((-0.01 - 0.03) / 2, abs=0.003)


def _without_liver(case: CaseCounts) -> AtThresholds:
    assert case.thresholds
    changes = {
        step: {label: value for label, value in one.items() if label != "liver"}
        for step, one in case.thresholds.changes.items()
    }
    return AtThresholds(changes, case.thresholds.counts)


def test_without_probabilities_there_are_no_thresholds() -> None:
    """Not for all cases: none."""
    cases = study(0.05, 0.0)
    cases[3] = CaseCounts("3", "3", cases[3].labels)
    assert not [one for one in choose(cases, NAMES) if one.step.kind == "threshold"]
