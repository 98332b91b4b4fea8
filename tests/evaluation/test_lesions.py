"""Lesion-wise scores: against MONAI's panoptic quality on cc3d's components, by hand, and BraTS's published steps.

These are taken one by one, with cc3d's components and DeepMind's distances.
"""

from __future__ import annotations

import tracemalloc
import warnings
from itertools import permutations, product
from typing import Any

import cc3d
import numpy as np
import pytest
import torch
from monai.metrics.panoptic_quality import compute_panoptic_quality

from maskmed_zoo.evaluation import parallel
from maskmed_zoo.evaluation.case import LabelMapPair, score_case
from maskmed_zoo.evaluation.lesions import BratsLesions, brats_lesions
from maskmed_zoo.evaluation.matching import Quality, overlaps
from maskmed_zoo.evaluation.metrics import chosen
from maskmed_zoo.labels import Labels
from maskmed_zoo.metric_settings import MetricSettings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks for names that SciPy has moved
    import surface_distance

LABELS = Labels({"background": 0, "lesion": 1, "cyst": 2, "ignore": 3})
F1S = ("lesion_f1", "lesion_f1_25", "lesion_f1_50", "lesion_f1_75")
SHARES = ("lesion_pq", "lesion_sq", "lesion_rq", *F1S, "lesion_dice", "brats_dice")
SPACING = (2.0, 1.0, 0.5)
NAMES = (*SHARES, "brats_hd95")


def blobs(seed: int, shape: tuple[int, int, int] = (14, 20, 20)) -> tuple[np.ndarray, np.ndarray]:
    """A mask of boxes, some of which touch, and a moved one that lacks some of them and has some more."""
    rng = np.random.default_rng(seed)
    pred, ref = np.zeros(shape, bool), np.zeros(shape, bool)
    for _ in range(8):
        low, size = rng.integers(0, shape), rng.integers(1, 6, 3)
        where = tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))
        ref[where] |= rng.random() < 0.8
        moved = tuple(slice(a + rng.integers(0, 2), a + n + rng.integers(0, 2)) for a, n in zip(low, size, strict=True))
        pred[moved] |= rng.random() < 0.8
    return pred, ref


def scores(pred: np.ndarray, ref: np.ndarray, spacing=(1.0, 1.0, 1.0), **settings: Any) -> dict[str, float | None]:
    """Of the label 'lesion'."""
    how = MetricSettings(**settings)
    pair = LabelMapPair("a", pred.astype(int), ref.astype(int), LABELS, frozenset({"lesion"}), spacing, None, how)
    scored = score_case(pair, [metric for metric in chosen(NAMES) if metric.name in NAMES])
    return {name: scored.scores[name].values["lesion"] for name in NAMES}


def test_quality_is_monais_of_cc3ds_components() -> None:
    found = list[float]()
    for seed in range(12):
        pred, ref = blobs(seed)
        parts = [cc3d.connected_components(mask.astype(np.uint8), connectivity=26) for mask in (pred, ref)]
        sides = [torch.from_numpy(numbers.astype(np.int64)) for numbers in parts]
        expected = [
            float(compute_panoptic_quality(*sides, metric_name=name, smooth_numerator=0)) for name in ("pq", "sq", "rq")
        ]
        got = scores(pred, ref)
        assert [got["lesion_pq"], got["lesion_rq"]] == pytest.approx([expected[0], expected[2]], abs=1e-6)
        assert got["lesion_sq"] == (pytest.approx(expected[1], abs=1e-6) if expected[2] else None)
        found.append(expected[2])
    assert len(set(found)) > 6, "cases without a pair would prove little"


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5, 0.75])
def test_f1_and_dice_against_sets_of_voxels(overlap: float) -> None:
    for seed in range(5):
        pred, ref = blobs(50 + seed)
        ours, theirs = (
            [set(np.flatnonzero(parts == n)) for n in range(1, parts.max() + 1)]
            for parts in (cc3d.connected_components(mask.astype(np.uint8), connectivity=26) for mask in (pred, ref))
        )
        ious = {(i, j): len(a & b) / len(a | b) for (i, a), (j, b) in product(enumerate(theirs), enumerate(ours))}
        pairs = list[tuple[int, int]]()
        for (i, j), iou in sorted(ious.items(), key=lambda item: -item[1]):
            if iou > overlap and all(i != a and j != b for a, b in pairs):
                pairs.append((i, j))
        dice = [0.0] * sum(not any(o & t for t in theirs) for o in ours)
        for lesion in theirs:
            union = set[int]().union(*(o for o in ours if o & lesion))
            dice.append(2 * len(union & lesion) / (len(union) + len(lesion)))
        got = scores(pred, ref, lesion_overlap=overlap)
        assert got["lesion_f1"] == pytest.approx(2 * len(pairs) / (len(ours) + len(theirs)))
        assert got["lesion_dice"] == pytest.approx(np.mean(dice))
        fixed = {0.5: "lesion_f1_50", 0.25: "lesion_f1_25", 0.75: "lesion_f1_75"}
        if overlap in fixed:
            assert got["lesion_f1"] == got[fixed[overlap]]
        assert got["lesion_f1_50"] == got["lesion_rq"]


def grown(mask: np.ndarray, steps: int) -> np.ndarray:
    """A mask and the voxels around it that share a face or an edge with one of it, `steps` times."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        offsets = [offset for offset in product((-1, 0, 1), repeat=3) if np.abs(offset).sum() <= 2]
        mask = np.any([np.roll(padded, offset, (0, 1, 2))[1:-1, 1:-1, 1:-1] for offset in offsets], axis=0)
    return mask


def hd95(pred: np.ndarray, ref: np.ndarray) -> float:
    """DeepMind's."""
    surfaces = surface_distance.compute_surface_distances(ref, pred, SPACING)
    return surface_distance.compute_robust_hausdorff(surfaces, 95)


def published(pred: np.ndarray, ref: np.ndarray, dilation: int, smallest: float) -> list[tuple[float, float]]:
    """Dice and HD95 that BraTS 2023 averages, in the steps in which its rule is written, lesion by lesion."""
    parts = cc3d.connected_components(pred.astype(np.uint8), connectivity=26)
    regions = cc3d.connected_components(grown(ref, dilation).astype(np.uint8), connectivity=26)
    values, matched = list[tuple[float, float]](), set[int]()
    for number in range(1, regions.max() + 1):
        lesion = ref & (regions == number)
        touched = set(np.unique(parts[grown(lesion, dilation)])) - {0}
        matched |= touched
        union = np.isin(parts, list(touched))
        if lesion.sum() > smallest:
            dice = 2 * (union & lesion).sum() / (union.sum() + lesion.sum())
            values.append((dice, hd95(union, lesion) if touched else 374.0))
    return values + [(0.0, 374.0)] * len(set(range(1, parts.max() + 1)) - matched)


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")  # of surface-distance
@pytest.mark.parametrize(("dilation", "smallest"), [(0, 0), (1, 2), (2, 0), (3, 50), (3, 8)])
def test_brats_by_its_steps(dilation: int, smallest: float) -> None:
    lengths = set[int]()
    for seed in range(12):
        pred, ref = blobs(200 + seed, (16, 26, 26))
        expected = published(pred, ref, dilation, smallest)
        lengths.add(len(expected))
        got = scores(pred, ref, SPACING, brats_dilation=dilation, brats_smallest=smallest)
        dice, distance = np.mean(expected, axis=0) if expected else (1.0, 0.0)
        assert got["brats_dice"] == pytest.approx(dice)
        assert got["brats_hd95"] == pytest.approx(distance)
    assert len(lengths) > 2, "cases with one number of lesions would prove little"


def line(text: str) -> np.ndarray:
    """# to a mask (1 1 n)."""
    return np.array([[[letter == "#" for letter in text]]])


def brats(pred: str, ref: str, dilation: int, smallest: float) -> BratsLesions:
    return brats_lesions(line(pred), line(ref), dilation, smallest)


def test_lesions_that_meet_when_dilated_are_one() -> None:
    found = brats("..##......#.", "##..##......", 1, 0)
    assert found.dice == pytest.approx([0.0])  # one lesion of four voxels, and a part beside its voxels that touches it
    assert found.false == 1
    apart = brats("..##......#.", "##..##......", 0, 0)
    assert (apart.dice.tolist(), apart.false) == ([0.0, 0.0], 2)
    assert brats("####........", "##..##......", 1, 0).dice == pytest.approx([2 * 2 / 8])


def test_small_lesions_do_not_count_and_what_belongs_to_them_is_not_false() -> None:
    assert brats("##......###.", "##......###.", 0, 2).dice == pytest.approx([1.0])
    found = brats(".#.........", "#......####", 1, 1)
    assert (found.dice.tolist(), found.false) == ([0.0], 0)
    assert found.mean(found.dice.tolist(), false=374.0, nothing=0.25) == 0.0
    nothing = brats(".#.........", "#..........", 1, 1)
    assert nothing.mean([], false=374.0, nothing=0.25) == 0.25
    assert brats("...........", "...........", 1, 1).mean([], false=0.0, nothing=1.0) == 1.0


def test_the_smallest_volume_is_in_cubic_millimetres() -> None:
    mask = line("##......###.")
    assert scores(mask, mask & line("##.........."), (1.0, 1.0, 1.0), brats_smallest=2)["brats_dice"] == 0.0
    halves = {"brats_smallest": 2.0, "brats_dilation": 0}
    assert scores(mask, mask & line("##.........."), (2.0, 1.0, 1.0), **halves)["brats_dice"] == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(3))
def test_scores_do_not_depend_on_the_axes(seed: int) -> None:
    pred, ref = blobs(300 + seed)
    expected = scores(pred, ref)
    for axes in permutations(range(3)):
        turned = [np.ascontiguousarray(mask.transpose(axes)[::-1, :, ::-1]) for mask in (pred, ref)]
        assert scores(*turned) == pytest.approx(expected)
    there_and_back = scores(ref, pred)
    for name in ("lesion_pq", "lesion_sq", "lesion_rq", *F1S):
        assert there_and_back[name] == pytest.approx(expected[name])
    assert scores(ref, ref, brats_smallest=0) == dict.fromkeys(SHARES, 1.0) | {"brats_hd95": 0.0}


def test_absent_missed_and_false_labels() -> None:
    mask, nothing = line("####...."), line("........")
    rules = {"brats_smallest": 0.0, "brats_penalty": 99.0}
    assert scores(nothing, nothing, **rules) == dict.fromkeys(SHARES, None) | {"brats_dice": 1.0, "brats_hd95": 0.0}
    worst = dict.fromkeys(SHARES, 0.0) | {"lesion_sq": None, "brats_hd95": 99.0}
    assert scores(nothing, mask, **rules) == scores(mask, nothing, **rules) == worst
    assert scores(nothing, mask, brats_smallest=4)["brats_dice"] == 1.0
    assert scores(mask, nothing, brats_smallest=4)["brats_dice"] == 0.0  # no part is too small to be false


def test_ignored_voxels_count_on_neither_side() -> None:
    ref = np.array([[[1, 1, 0, 0, 3, 3, 0, 1]]])
    pred = np.array([[[1, 1, 0, 0, 1, 1, 0, 1]]])
    pair = LabelMapPair("a", pred, ref, LABELS, frozenset({"lesion"}), (1.0, 1.0, 1.0))
    assert score_case(pair, chosen(["lesion_rq"])).scores["lesion_rq"].values == {"lesion": 1.0}


def test_settings_are_told() -> None:
    known = {metric.name: metric for metric in chosen(NAMES)}
    how = MetricSettings(lesion_overlap=0.25, brats_dilation=1, brats_smallest=2.0)
    assert "0.25 (lesion_overlap)" in known["lesion_f1"].rules(how)
    words = known["brats_dice"].rules(how)
    assert "dilated by 1 voxels (brats_dilation" in words
    assert "of 2 mm³ or less (brats_smallest)" in words
    assert "374 mm (brats_penalty)" in known["brats_hd95"].rules(how)


def test_thousands_of_objects_need_no_table_of_their_pairs() -> None:
    single = np.zeros((40, 40, 40), bool)
    single[::2, ::2, ::2] = True
    ids = np.where(single, np.cumsum(single).reshape(single.shape), 0)
    tracemalloc.start()
    met = overlaps(ids, np.roll(ids, 2, 2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(met.reference) == 8000
    assert len(met.pairs()) == 8000
    assert peak < 30e6  # 8000 x 8000 numbers would be 500e6
    assert Quality.of(met) == (1.0, 1.0, 1.0)


def test_memory_of_a_label_all_over_an_image() -> None:
    pred, ref = np.zeros((2, 80, 100, 100), bool)
    pred[20:50, 20:60, 20:60] = ref[25:55, 20:60, 20:60] = True
    pred[-1, -1, -1] = ref[0, 0, 0] = True
    maps = pred.view(np.uint8), ref.view(np.uint8)
    pair = LabelMapPair("a", *maps, LABELS, frozenset({"lesion"}), (1.0, 1.0, 1.0))
    tracemalloc.start()
    score_case(pair, chosen(["lesion_f1", "brats_dice"]))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 22 * pred.size
    assert kept < pred.size, "nothing but the scores is kept for every voxel"


def test_fewer_threads_where_boxes_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.zeros((10, 10, 10), np.uint8)
    array[::9, ::9, ::9], array[4, 4, 4] = 1, 2
    pair = LabelMapPair("a", array, array, LABELS, frozenset({"lesion", "cyst"}), (1.0, 1.0, 1.0))
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 6)
    monkeypatch.setattr(parallel, "VOXELS_AT_ONCE", 3500)
    assert parallel.threads(pair, ["cyst"]) == 6
    assert parallel.threads(pair, ["lesion", "cyst"]) == 3
    monkeypatch.setattr(parallel, "VOXELS_AT_ONCE", 1)
    assert parallel.threads(pair, ["lesion"]) == 1
