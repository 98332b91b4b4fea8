"""Scores of objects: against MONAI, against a plain count of voxel sets, and by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics.panoptic_quality import PanopticQualityMetric
from rich.console import Console

from maskmed_zoo.data.predicted import is_objects_file
from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.evaluation.metrics.objects import Matches, match_objects, summarize_objects
from maskmed_zoo.evaluation.table import tables

LABELS = {"nodule": 1, "cyst": 2}
Maps = tuple[np.ndarray, np.ndarray]


def random_maps(seed: int) -> tuple[Maps, Maps]:
    """Label maps and numbers of blocks, and the same moved, cut, renumbered, and with blocks more and less."""
    rng = np.random.default_rng(seed)
    sides = [(np.zeros((8, 24, 24), int), np.zeros((8, 24, 24), int)) for _ in range(2)]
    for number in range(1, 10):
        corner, size, label = rng.integers((0, 1, 1), (3, 17, 17)), rng.integers(3, 7, 3), int(rng.integers(1, 3))
        for side, (labels, numbers) in enumerate(sides):
            if rng.random() < 0.85:
                low = corner + (rng.integers(0, 2, 3) * (0, side, side))
                where = tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))
                labels[where], numbers[where] = label, 7 * number + side
    return sides[0], sides[1]


@pytest.mark.parametrize("seed", range(6))
def test_panoptic_quality_is_monais(seed: int) -> None:
    cases = {f"case_{i}": random_maps(10 * seed + i) for i in range(3)}
    metric = PanopticQualityMetric(
        num_classes=2, metric_name=("pq", "sq", "rq"), reduction="sum_batch", smooth_numerator=0
    )
    for pred, ref in cases.values():
        metric(*(torch.from_numpy(np.stack([numbers, labels]))[None] for labels, numbers in (pred, ref)))
    expected = torch.stack([*metric.aggregate()]).T
    counts = PanopticQualityMetric(num_classes=2, reduction="sum_batch", return_confusion_matrix=True)
    for pred, ref in cases.values():
        counts(*(torch.from_numpy(np.stack([numbers, labels]))[None] for labels, numbers in (pred, ref)))
    summary = summarize_objects({name: match_objects(*maps, LABELS) for name, maps in cases.items()}, list(LABELS))
    for row, values, total in zip(summary["labels"].values(), expected, counts.aggregate(), strict=True):
        assert [row["pq"], row["sq"], row["rq"]] == pytest.approx(values.tolist(), abs=1e-5)
        assert [row["tp"], row["fp"], row["fn"]] == total[:3].tolist()
        assert min(row["tp"], row["fp"] + row["fn"]) > 0, "a case without pairs or errors would prove little"
    assert summary["pq"] == pytest.approx(expected[:, 0].mean().item(), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_lesions_against_sets_of_voxels(seed: int) -> None:
    pred, ref = random_maps(seed)
    found = match_objects(pred, ref, LABELS)
    for name, value in LABELS.items():
        ours, theirs = (
            [set(np.flatnonzero((numbers == n) & (labels == value))) for n in np.unique(numbers[labels == value])]
            for labels, numbers in (pred, ref)
        )
        dice = []
        for lesion in theirs:
            union = set().union(*(o for o in ours if o & lesion))
            dice.append(2 * len(union & lesion) / (len(union) + len(lesion)))
        false = sum(not any(o & lesion for lesion in theirs) for o in ours)
        assert found[name].dice == pytest.approx(dice)
        assert found[name].false == false
        assert found[name].lesion_dice == pytest.approx(sum(dice) / (len(dice) + false))


def row(text: str) -> np.ndarray:
    """Digits to an array (1 1 n)."""
    return np.array([[[int(digit) for digit in text]]])


def scores(pred: str, ref: str, **arguments: int) -> dict[str, object]:
    """One case, one label, numbers as digits."""
    maps = [((row(text) > 0).astype(int), row(text)) for text in (pred, ref)]
    summary = summarize_objects({"a": match_objects(maps[0], maps[1], {"nodule": 1}, **arguments)}, ["nodule"])
    return summary["labels"]["nodule"]


def test_by_hand() -> None:
    # reference 1 (4 voxels): prediction 5 has 3 of them; 2 (2 voxels): none; prediction 6 lies apart, 7 bridges 3 and 4
    got = scores("0055500006600777777", "0111100220000333044")
    assert got == {
        "pq": pytest.approx(0.75 / (1 + 1 + 1.5)),
        "sq": pytest.approx(0.75),
        "rq": pytest.approx(1 / (1 + 1 + 1.5)),
        "lesion_dice": pytest.approx((6 / 7 + 0 + 6 / 9 + 4 / 8 + 0) / 5),
        "f1": pytest.approx(6 / (6 + 1 + 1)),
        **{"tp": 1, "fp": 2, "fn": 3, "found": 3, "missed": 1, "false": 1, "n": 1, "absent": 0},
    }


def test_half_an_overlap_is_no_pair() -> None:
    assert scores("110", "011")["tp"] == 0  # 1/3
    assert scores("1110", "0111")["tp"] == 0  # 2/4
    assert scores("11110", "01111")["tp"] == 1  # 3/5
    assert scores("11220", "11110")["lesion_dice"] == 1.0  # in two parts, together the whole


def test_nothing_is_not_perfect() -> None:
    nothing = scores("000", "000")
    assert (nothing["n"], nothing["absent"]) == (0, 1)
    assert [nothing[key] for key in ("pq", "sq", "rq", "lesion_dice", "f1")] == [None] * 5
    for pred, ref in (("110", "000"), ("000", "110")):
        got = scores(pred, ref)
        assert [got[key] for key in ("pq", "sq", "rq", "lesion_dice", "f1")] == [0, None, 0, 0, 0]
    empty = Matches((), (), 0, 0)
    summary = summarize_objects({"a": {"nodule": empty}, "b": {}}, ["nodule", "cyst"])
    assert summary["labels"]["cyst"]["absent"] == summary["labels"]["cyst"]["n"] == 0  # not annotated
    assert summary["pq"] is None
    json.dumps(summary, allow_nan=False)


def test_cases_are_pooled_for_quality_and_averaged_for_lesions() -> None:
    many = Matches((0.9,) * 3, (0.9,) * 3, 3, 0)
    none = Matches((), (0.0,), 0, 0)
    labels = summarize_objects({"a": {"x": many}, "b": {"x": none}, "c": {"x": Matches((), (), 0, 0)}}, ["x"])["labels"]
    assert labels["x"]["pq"] == pytest.approx(0.9 * 3 / 3.5)
    assert labels["x"]["lesion_dice"] == pytest.approx((0.9 + 0.0) / 2)
    assert (labels["x"]["n"], labels["x"]["absent"]) == (2, 1)


def test_ignored_voxels_count_on_neither_side() -> None:
    pred = (row("11100").clip(0, 1), row("11100"))
    ref = (row("11990"), row("11000"))
    assert match_objects(pred, ref, {"nodule": 1}, 9)["nodule"] == Matches((1.0,), (1.0,), 1, 0)
    assert match_objects(pred, ref, {"nodule": 1})["nodule"].ious == (pytest.approx(2 / 3),)


def save(path: Path, array: np.ndarray, scale: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(np.uint8), np.diag([1, 1, scale, 1])), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    pred, ref = tmp_path / "pred", tmp_path / "data" / "labelsTs"
    for name, ours, theirs in (("x", "0112200", "0112200"), ("y", "0111100", "0112200")):
        for folder, text in ((pred, ours), (ref, theirs)):
            save(folder / f"{name}.nii.gz", row(text) > 0)
        save(pred / f"{name}_instances.nii.gz", row(ours))
        save(ref.parent / "instancesTs" / f"{name}.nii.gz", row(theirs))
    (ref.parent / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "nodule": 1}}))
    return pred, ref


def test_folders(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    assert is_objects_file(pred / "x_instances.nii.gz")
    assert not is_objects_file(pred / "x.nii.gz")
    summary = evaluate_folders(pred, ref)
    assert [case["case"] for case in summary["cases"]] == ["x", "y"]
    assert summary["unreferenced"] == []
    objects = summary["instances"]
    assert [case["labels"]["nodule"]["tp"] for case in objects["cases"]] == [2, 0]
    assert (objects["tp"], objects["fp"], objects["fn"]) == (2, 1, 2)
    assert "IoU" in objects["definition"]
    json.dumps(summary, allow_nan=False)
    # beside the reference they come first; without a map, connected parts are the reference's objects
    for path in sorted((ref.parent / "instancesTs").iterdir()):
        path.rename(ref / path.name.replace(".nii", "_instances.nii"))
    assert evaluate_folders(pred, ref)["instances"] == objects
    for name in ("x", "y"):
        (ref / f"{name}_instances.nii.gz").unlink()
    parts = evaluate_folders(pred, ref)["instances"]
    assert [case["labels"]["nodule"]["tp"] for case in parts["cases"]] == [0, 1]


def test_table(folders: tuple[Path, Path]) -> None:
    console = Console(file=io.StringIO(), width=140)
    for table in tables(evaluate_folders(*folders)):
        console.print(table)
    lines = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines()]
    assert ["nodule", "0.5714", "1.0000", "0.5714", "0.8333", "1.0000", "2", "1", "2", "4", "0", "0"] in lines
    assert any(line[:2] == ["mean,", "total"] for line in lines)


def test_an_image_is_no_label_map(tmp_path: Path) -> None:
    for folder in ("pred", "ref"):
        (tmp_path / folder).mkdir()
        values = np.arange(1100, dtype=np.int16).reshape(10, 10, 11)
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / folder / "a.nii.gz")
    with pytest.raises(DataError, match=r"a\.nii\.gz: an image\? 1100 different values are more than 1000 labels"):
        evaluate_folders(tmp_path / "pred", tmp_path / "ref")


def test_mistakes_are_named(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    save(ref.parent / "instancesTs" / "y.nii.gz", row("0112200"), 2.0)
    with pytest.raises(DataError, match=r"instancesTs/y\.nii\.gz: voxels lie"):
        evaluate_folders(pred, ref)
    (pred / "x_instances.nii.gz").unlink()
    with pytest.raises(DataError, match=r"x_instances\.nii\.gz: no such file"):
        evaluate_folders(pred, ref)
    (pred / "y_instances.nii.gz").unlink()
    assert "instances" not in evaluate_folders(pred, ref)
