"""Brier score, calibration error and reliability: against scikit-learn and torchmetrics, by hand, and from files."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from rich.console import Console
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation import calibration as counted
from maskmed_zoo.evaluation.aggregate import summarize_cases
from maskmed_zoo.evaluation.calibration import Reliability
from maskmed_zoo.evaluation.case import LabelMapPair, ScoredCase, score_case
from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.evaluation.metrics import chosen
from maskmed_zoo.evaluation.table import tables
from maskmed_zoo.labels import Labels
from maskmed_zoo.metric_settings import MetricSettings

LABELS = Labels({"background": 0, "liver": 1, "spleen": 2, "ignore": 3})
WANTED = chosen(["brier", "ece"])
Probabilities = np.ndarray


def random_case(seed: int, shape: tuple[int, ...] = (5, 6, 7)) -> tuple[Probabilities, np.ndarray]:
    """(k z y x) and a reference that follows them, too seldom."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet((0.6, 0.4, 0.3), shape).transpose(3, 0, 1, 2)
    drawn = (rng.random(shape) > probabilities.cumsum(0)[:2]).sum(0)
    return probabilities, np.where(rng.random(shape) < 0.2, rng.integers(0, 3, shape), drawn)


def scored(
    probabilities: Probabilities, reference: np.ndarray, annotated=("liver", "spleen"), identifier="a", bins: int = 15
) -> ScoredCase:
    pair = LabelMapPair(
        identifier,
        probabilities.argmax(0),
        reference,
        LABELS,
        frozenset(annotated),
        (1.0, 1.0, 1.0),
        settings=MetricSettings(calibration_bins=bins),
        probabilities=list(zip(LABELS.names, probabilities, strict=True)),
    )
    return score_case(pair, WANTED)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_equals_scikit_learn_and_torchmetrics(bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted, "CHUNK_VOXELS", 50)
    probabilities, reference = random_case(bins)
    case = scored(probabilities, reference, bins=bins)
    for value, name in ((1, "liver"), (2, "spleen")):
        p, hit = probabilities[value].ravel(), (reference == value).ravel()
        assert case.scores["brier"].values[name] == pytest.approx(brier_score_loss(hit, p), abs=1e-12)
        theirs = binary_calibration_error(torch.from_numpy(p), torch.from_numpy(hit).int(), n_bins=bins)
        assert case.scores["ece"].values[name] == pytest.approx(float(theirs), abs=1e-6)
        frequency, mean = calibration_curve(hit, p, n_bins=bins)
        curve = case.calibration.labels[name].to_dict()["curve"]
        assert [entry["frequency"] for entry in curve] == pytest.approx(frequency)
        assert [entry["probability"] for entry in curve] == pytest.approx(mean)
    flat = torch.from_numpy(probabilities.reshape(3, -1).T.copy()), torch.from_numpy(reference.ravel())
    theirs = multiclass_calibration_error(*flat, num_classes=3, n_bins=bins)
    top = case.calibration.most_probable
    assert top.ece == pytest.approx(float(theirs), abs=1e-6)
    one_hot = np.stack([reference == value for value in range(3)])
    assert top.brier == pytest.approx(((probabilities - one_hot) ** 2).sum(0).mean())


def test_by_hand() -> None:
    p = np.array([0.0, 0.1, 0.4, 0.5, 0.9, 1.0])
    found = Reliability.of(p, np.array([0, 0, 1, 0, 1, 1], bool), 2)
    assert found.voxels.tolist() == [3, 3]
    assert found.hits.tolist() == [1, 2]
    assert found.ece == pytest.approx((abs(1 - 0.5) + abs(2 - 2.4)) / 6)
    assert found.brier == pytest.approx((0 + 0.01 + 0.36 + 0.25 + 0.01 + 0) / 6)
    assert Reliability.none(3).to_dict() == {"voxels": 0, "ece": 0.0, "brier": 0.0, "curve": []}


def test_certain_and_right_is_perfect_certain_and_wrong_is_worst() -> None:
    reference = np.array([[[0, 1, 1, 0]]])
    right = np.stack([reference == value for value in range(3)]).astype(float)
    case = scored(right, reference)
    assert case.scores["brier"].values == case.scores["ece"].values == {"liver": 0.0, "spleen": None}
    wrong = right[[1, 0, 2]]
    found = scored(wrong, reference, ["liver"]).calibration.labels["liver"]
    assert (found.ece, found.brier) == (1.0, 1.0)


def test_probabilities_that_keep_their_promise_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    assert Reliability.of(p, rng.random(p.size) < p, 15).ece < 0.01
    assert Reliability.of(p**2, rng.random(p.size) < p, 15).ece > 0.1


def test_ignored_voxels_and_labels_that_were_not_annotated() -> None:
    probabilities, reference = random_case(5)
    ignored = reference.copy()
    ignored[:2] = 3
    some, part = scored(probabilities, ignored), scored(probabilities[:, 2:], reference[2:])
    assert some.scores["ece"].values == part.scores["ece"].values
    assert some.calibration.most_probable.total == 3 * 6 * 7
    partly = scored(probabilities, reference, ["liver"])
    assert set(partly.calibration.labels) == {"liver"}
    assert partly.calibration.most_probable is None


def test_summary_pools_the_voxels_of_all_cases() -> None:
    cases = [random_case(1, (2, 3, 4)), random_case(2, (6, 5, 4))]
    found = [scored(*case, identifier=name) for name, case in zip("ab", cases, strict=True)]
    found.append(scored(*random_case(3), ["liver"], "c"))
    summary = summarize_cases(found, LABELS.names, WANTED)
    json.dumps(summary, allow_nan=False)
    pooled = Reliability.of(
        np.concatenate([p[2].ravel() for p, _ in cases]), np.concatenate([r.ravel() == 2 for _, r in cases]), 15
    )
    calibration = summary["calibration"]
    spleen = calibration["labels"]["spleen"]
    assert [spleen[key] for key in ("ece", "brier", "voxels")] == pytest.approx(
        [pooled.ece, pooled.brier, pooled.total]
    )
    assert calibration["labels"]["liver"]["voxels"] == 2 * 3 * 4 + 6 * 5 * 4 + 5 * 6 * 7
    assert calibration["most_probable"]["voxels"] == 2 * 3 * 4 + 6 * 5 * 4
    assert sum(entry["voxels"] for entry in spleen["curve"]) == pooled.total
    ece = summary["metrics"]["ece"]
    assert ece["cases"][0]["ece"]["liver"] == found[0].scores["ece"].values["liver"]
    console = Console(file=io.StringIO(), width=120)
    for part in tables(summary):
        console.print(part)
    text = console.file.getvalue()
    assert "most probable label" in text
    assert f"{pooled.ece:.3g}" in text


def test_memory_does_not_grow_with_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted, "CHUNK_VOXELS", 2**12)
    peaks = list[float]()
    for classes in (3, 12):
        labels = Labels({"background": 0, **{f"label_{value}": value for value in range(1, classes)}})
        reference = np.random.default_rng(0).integers(0, classes, (60, 70, 80)).astype(np.int16)
        given = ((name, np.where(reference == value, 0.9, 0.0).astype(np.float32)) for name, value in labels.items())
        everything = frozenset(labels.foreground)
        pair = LabelMapPair("a", reference, reference, labels, everything, (1, 1, 1), probabilities=given)
        tracemalloc.start()
        assert len(pair.calibration.labels) == classes - 1
        peaks.append(tracemalloc.get_traced_memory()[1] / reference.size)
        tracemalloc.stop()
    assert peaks[1] == pytest.approx(peaks[0], rel=0.1)
    assert max(peaks) < 24  # bytes per voxel, with the probabilities made here


def test_metrics_of_label_maps_need_no_probabilities() -> None:
    pair = LabelMapPair("a", np.ones((1, 1, 2), int), np.ones((1, 1, 2), int), LABELS, frozenset({"liver"}), (1, 1, 1))
    assert score_case(pair, chosen([])).calibration is None
    with pytest.raises(DataError, match="case 'a': metrics of probabilities"):
        score_case(pair, WANTED)


AFFINE = np.array([[0, -2.0, 0, 40], [0, 0, 3.0, -20], [-1.5, 0, 0, 7], [0, 0, 0, 1]])
"""Neither the order nor the direction of the axes is RAS."""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Label maps in one orientation, references in RAS, probabilities as nnU-Net stores them: (k, k, j, i)."""
    pred, ref = tmp_path / "pred", tmp_path / "labelsTs"
    pred.mkdir()
    ref.mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "spleen": 2}}))
    for seed, name in enumerate("xy"):
        probabilities, reference = random_case(seed, (4, 5, 6))  # in the order of the file, (i j k)
        image = nib.Nifti1Image(reference.astype(np.uint8), AFFINE)
        nib.save(nib.as_closest_canonical(image), ref / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(probabilities.argmax(0).astype(np.uint8), AFFINE), pred / f"{name}.nii.gz")
        stored = np.ascontiguousarray(probabilities.transpose(0, 3, 2, 1), np.float32)
        np.savez_compressed(pred / f"{name}.npz", probabilities=stored)
    return pred, ref


def test_nnunets_files_are_read_on_their_axes(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    with np.load(pred / "x.npz", allow_pickle=False) as file:  # nnU-Net reads and writes with SimpleITK
        labels = file["probabilities"].argmax(0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(pred / "x.nii.gz")), labels)
    summary = evaluate_folders(pred, ref, metrics=["brier", "ece"])
    for seed, case in enumerate(summary["metrics"]["brier"]["cases"]):
        probabilities, reference = random_case(seed, (4, 5, 6))
        for value, name in ((1, "liver"), (2, "spleen")):
            expected = brier_score_loss((reference == value).ravel(), probabilities[value].ravel())
            assert case["brier"][name] == pytest.approx(expected, abs=1e-6)
    assert summary["unreferenced"] == []
    assert "calibration" not in evaluate_folders(pred, ref, metrics=["iou"])


def test_a_missing_prediction_is_sure_that_there_is_nothing(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    for path in (pred / "y.nii.gz", pred / "y.npz"):
        path.unlink()
    summary = evaluate_folders(pred, ref, metrics=["brier"], missing_as_missed=True)
    reference = random_case(1, (4, 5, 6))[1]
    case = next(case for case in summary["metrics"]["brier"]["cases"] if case["case"] == "y")
    for value, name in ((1, "liver"), (2, "spleen")):
        assert case["brier"][name] == pytest.approx((reference == value).mean(), abs=1e-12)
    assert summary["unpredicted"] == ["y"]


def damaged(folder: Path, change) -> None:
    path = folder / "x.npz"
    with np.load(path, allow_pickle=False) as file:
        stored = change(file["probabilities"])
    np.savez_compressed(path, **{"logits" if stored.ndim == 1 else "probabilities": stored})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p[:2], "2 labels, expected 3: background, liver, spleen"),
        (lambda p: p.transpose(0, 3, 2, 1).copy(), r"is \(3, 4, 5, 6\), expected \(labels, 6, 5, 4\)"),
        (lambda p: p[..., ::-1], "most voxels"),
        (lambda p: 3 * p, "no probabilities"),
        (lambda p: p - 0.2, "no probabilities"),
        (lambda p: p * 0.8, "sum to up to 0.2 more or less than 1"),
        (lambda p: np.where(p == p.max(), np.nan, p), "are NaN, no probabilities"),
        (lambda p: (p * 100).astype(np.int16), "holds int16"),
        (np.asfortranarray, "Fortran"),
        (lambda p: p.astype(object), "holds object"),
        (np.ravel, "no item named 'probabilities.npy'"),
    ],
)
def test_what_cannot_be_the_probabilities_of_a_label_map(folders: tuple[Path, Path], change, words: str) -> None:
    pred, ref = folders
    damaged(pred, change)
    with pytest.raises(DataError, match=words) as caught:
        evaluate_folders(pred, ref, metrics=["ece"])
    assert "\n" not in str(caught.value)
    assert "x" in str(caught.value)
    assert evaluate_folders(pred, ref)["mean_dice"] is not None


def test_missing_and_damaged_files(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    path = pred / "y.npz"
    whole = path.read_bytes()
    for content in (b"", whole[:-30], b"no archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"y\.npz: cannot be read .*; expected 'probabilities'"):
            evaluate_folders(pred, ref, metrics=["brier"])
    with zipfile.ZipFile(path, "w") as archive:  # a header that promises more than there is
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (3, 6, 5, 4)})
        archive.writestr("probabilities.npy", buffer.getvalue() + b"\0" * 40)
    with pytest.raises(DataError, match=r"y\.npz: cannot be read"):
        evaluate_folders(pred, ref, metrics=["brier"])
    path.unlink()
    with pytest.raises(DataError, match=r"y\.npz: no such file, .*--save_probabilities"):
        evaluate_folders(pred, ref, metrics=["brier"])


def test_other_labels_than_those_scored(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    (ref.parent / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1, "b": 2, "c": 3}}))
    with pytest.raises(DataError, match="3 labels, expected 4: background, a, b, c"):
        evaluate_folders(pred, ref, metrics=["brier"])
