"""Models that nnU-Net trained: labels and probabilities on a file's own voxels, against nnU-Net's own predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

import maskmed_zoo as zoo
from maskmed_zoo.data.case import Case, load_case
from maskmed_zoo.data.formats import read_labels
from maskmed_zoo.inference.nnunet import NNUNetPredictor, label_logits
from maskmed_zoo.model import SegmentationModel
from tests.conftest import write_nifti
from tests.interop.plans import network
from tests.interop.results import plans, random_weights, write_results

LPS = np.diag([-1.1, -0.9, 2.5, 1.0])
TURNED = np.array([[0, 0, -1.2, 9], [0.9, 0, 0, 4], [0, 3.5, 0, -7], [0, 0, 0, 1.0]])
SAME = np.diag([1.0, 1.0, 3.0, 1.0])
SHAPE = {"LPS": (24, 42, 12), "turned": (30, 11, 28), "same": (20, 40, 10)}


def write_case(folder: Path, affine: np.ndarray, shape: tuple[int, ...]) -> list[Path]:
    """Two channels of smooth noise in a frame of zeros; asymmetric, so that a wrong turn shows."""
    rng = np.random.default_rng(3)
    paths = []
    for channel in range(2):
        array = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
        array = (array / array.std() * 100 + 20 + np.arange(shape[0])[:, None, None]).astype(np.float32)
        array[:2], array[:, -1:] = 0, 0
        paths.append(folder / f"case_{channel:04d}.nii.gz")
        write_nifti(paths[-1], array, affine)
    return paths


def read(paths: list[Path]) -> tuple[np.ndarray, Any]:
    image, _, geometry = load_case(Case("case", tuple(paths), None), None)
    return image, geometry


def predictor_of(folder: Path, **keywords: Any) -> NNUNetPredictor:
    found = zoo.load(folder, device="cpu", **keywords)
    assert isinstance(found, NNUNetPredictor)
    return found


def theirs(kind: str, plan: dict[str, Any], seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return network(plan["configurations"]["3d_fullres"], 2, 3).state_dict()


CASES: dict[str, dict[str, Any]] = {
    "two folds": {"affine": LPS, "shape": SHAPE["LPS"], "kind": "PlainConvUNet", "folds": 2, "axes": (0, 1)},
    "turned": {"affine": TURNED, "shape": SHAPE["turned"], "kind": "ResidualEncoderUNet", "folds": 1, "axes": (0, 2)},
    "turned plan": {
        "affine": TURNED, "shape": SHAPE["turned"], "kind": "PlainConvUNet", "folds": 1, "axes": (1,),
        "plan": {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]},
    },
    "turning reader": {
        "affine": TURNED, "shape": SHAPE["turned"], "kind": "PlainConvUNet", "folds": 1, "axes": None,
        "plan": {"image_reader_writer": "NibabelIOWithReorient"},
    },
    "no mirroring": {
        "affine": SAME, "shape": SHAPE["same"], "kind": "PlainConvUNet", "folds": 1, "axes": (0, 1, 2),
        "mirroring": False, "configuration": {"use_mask_for_norm": [False, True]},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_labels_and_probabilities_are_nnunets(name: str, tmp_path: Path) -> None:
    """Every voxel, but for those where the two largest logits are as good as equal."""
    module = pytest.importorskip("nnunetv2.inference.predict_from_raw_data")
    case = CASES[name]
    plan = plans(case["kind"], **case.get("configuration", {})) | case.get("plan", {})
    folds = {str(fold): theirs(case["kind"], plan, fold) for fold in range(case["folds"])}
    folder = write_results(tmp_path, plan, folds, mirror_axes=case["axes"])
    paths, mirroring = write_case(tmp_path / "images", case["affine"], case["shape"]), case.get("mirroring", True)
    other = module.nnUNetPredictor(
        use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=False
    )
    other.initialize_from_trained_model_folder(str(folder), tuple(range(case["folds"])), "checkpoint_final.pth")
    (labels, probabilities), *_ = other.predict_from_files_sequential([[*map(str, paths)]], None, True, True, None)

    ours = predictor_of(folder, inference__mirror=mirroring)
    image, geometry = read(paths)
    found, chances = ours.segment(image, geometry).labels, ours.probabilities(image, geometry)
    if name != "turning reader":
        labels = geometry.to_canonical(labels.transpose(2, 1, 0))
        probabilities = np.stack([geometry.to_canonical(label.transpose(2, 1, 0)) for label in probabilities])
    assert found.shape == labels.shape
    np.testing.assert_allclose(chances, probabilities, atol=0.005)
    largest = np.sort(np.log(np.maximum(probabilities, 1e-30)), axis=0)
    assert (largest[-1] - largest[-2])[found != labels].max(initial=0) < 0.01
    assert (found == labels).mean() >= 0.9999
    assert len(np.unique(labels)) >= 2
    (written,) = ours.files(paths[0].parent, tmp_path / "out")
    np.testing.assert_array_equal(read_labels(written).array, found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plan = plans()
    return write_results(tmp_path / "results", plan, {str(fold): random_weights(plan, fold) for fold in range(2)})


def test_logits_are_resampled_linearly(folder: Path, tmp_path: Path) -> None:
    """By scipy's zoom, where no axis is thick: as nnU-Net's `resize` calls it."""
    ours = predictor_of(folder, inference__mirror=False)
    image, geometry = read(write_case(tmp_path / "images", np.diag([-1.1, -0.9, 2.5, 1]), (34, 40, 12)))
    ready = ours.prepare(image, geometry)
    assert ready.region.resampled != ready.region.cropped
    logits = ours.network_logits(ready.image)
    factors = [m / n for n, m in zip(ready.region.resampled, ready.region.cropped, strict=True)]
    expected = np.stack(
        [
            np.asarray(ndimage.zoom(label.double().numpy(), factors, order=1, mode="nearest", grid_mode=True))
            for label in logits
        ]
    )
    found = [label_logits(logits, label, ready.region).numpy() for label in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    inside = ours.order_of(geometry).turned(ours.segment(image, geometry).labels)[ready.region.box]
    largest = np.sort(expected, axis=0)
    assert (largest[-1] - largest[-2])[expected.argmax(0) != inside].max(initial=0) < 0.01


def test_labels_and_probabilities_agree(folder: Path, tmp_path: Path) -> None:
    ours = predictor_of(folder)
    image, geometry = read(write_case(tmp_path / "images", LPS, SHAPE["LPS"]))
    prediction = ours.segment(image, geometry, probabilities=True)
    chances = ours.probabilities(image, geometry)
    assert prediction.labels.shape == image.shape[1:] == chances.shape[1:]
    assert (chances.argmax(0) == prediction.labels).mean() > 0.9999
    np.testing.assert_allclose(chances.sum(0), 1, atol=1e-5)
    outside = np.abs(image).max(0) == 0
    assert outside.any()
    assert not prediction.labels[outside].any()
    assert (chances[0][outside] == 1).all()
    assert prediction.probabilities is not None
    for _ in range(2):
        names, label_by_label = zip(*prediction.probabilities, strict=True)
        assert names == ours.labels.names
        np.testing.assert_array_equal(np.stack(label_by_label), chances)
    seen = ours.network_probabilities(ours.prepare(image, geometry).image)
    torch.testing.assert_close(seen.sum(0), torch.ones(seen.shape[1:]))


def test_an_array_with_a_spacing_is_a_file_in_ras(folder: Path, tmp_path: Path) -> None:
    ours = predictor_of(folder)
    image, geometry = read(write_case(tmp_path / "images", np.diag([1.1, 0.9, 2.5, 1]), SHAPE["LPS"]))
    expected = ours.segment(image, geometry).labels
    np.testing.assert_array_equal(ours.segment(image, spacing=geometry.spacing).labels, expected)
    _, other = read(write_case(tmp_path / "other", np.diag([-1.1, 0.9, 2.5, 1]), SHAPE["LPS"]))
    assert (ours.segment(image, other).labels != expected).any()  # mirrored along x, for nnU-Net another image


def test_a_gpu_without_memory_falls_back_to_the_cpu(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, moves = predictor_of(folder), list[str]()
    image, geometry = read(write_case(tmp_path / "images", SAME, SHAPE["same"]))
    expected = ours.segment(image, geometry).labels

    def move(model: SegmentationModel, device: torch.device) -> SegmentationModel:
        moves.append(device.type)
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return model

    ours.device = torch.device("cuda")
    monkeypatch.setattr(SegmentationModel, "to", move)
    np.testing.assert_array_equal(ours.segment(image, geometry).labels, expected)
    assert moves == ["cuda", "cuda", "cpu", "cpu"], "twice the first, then both to the CPU"


def test_folds_are_averaged(folder: Path, tmp_path: Path) -> None:
    image, geometry = read(write_case(tmp_path / "images", SAME, SHAPE["same"]))
    both, *alone = (predictor_of(path) for path in (folder, folder / "fold_0", folder / "fold_1"))
    prepared = both.prepare(image, geometry).image
    mean = sum(one.network_logits(prepared).double() for one in alone) / 2
    torch.testing.assert_close(both.network_logits(prepared).double(), mean, rtol=2e-3, atol=2e-3)
    assert len({one.weights_sha256 for one in (both, *alone)}) == 3
