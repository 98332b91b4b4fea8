"""Files of probabilities: on the image's grid, as nnU-Net and our own `evaluate` read them, and known to the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nnunetv2.ensembling.ensemble import merge_files
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.spatial.transform import Rotation

from maskmed_zoo.build import model_of
from maskmed_zoo.data.formats import read_image, read_labels
from maskmed_zoo.data.predicted import STAMP
from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.recipe import Recipe, load_recipe
from tests.conftest import make_dataset, refusal

OVERRIDES = {"model.head.kind": "pointwise", "model.loss.kind": "ce_dice", "data.normalization": "zscore"}
OBLIQUE = np.eye(4)
OBLIQUE[:3] = np.c_[Rotation.from_euler("xyz", [8, -5, 12], degrees=True).as_matrix() * (-1, -1.3, 2), [20, -30, 5]]
FILES = {"case_00.nii.gz", "case_00.npz", "case_00.pkl", "case_00_probabilities.nii.gz"}


def made(recipe: Recipe, seed: int = 0) -> Predictor:
    torch.manual_seed(seed)
    model = model_of(recipe)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return Predictor(recipe, model, device="cpu")


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe, OVERRIDES)


def turned(folder: Path, codes: str) -> Path:
    """An image that lies obliquely, stored in another order of axes, with a part that is not seen."""
    array = np.random.default_rng(0).normal(size=(18, 20, 9)).astype(np.float32)
    array[:3] = array[..., -2:] = 0
    image = nib.Nifti1Image(array, OBLIQUE)
    path = folder / f"{codes}_0000.nii.gz"
    transform: Any = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(codes)))
    nib.save(image.as_reoriented(transform), path)
    return path


@pytest.mark.parametrize("codes", ["LPS", "SRA"])
def test_files_hold_the_probabilities_on_the_grid_of_the_image(recipe: Recipe, tmp_path: Path, codes: str) -> None:
    predictor, path = made(recipe), turned(tmp_path, codes)
    (label_map,) = predictor.files(path, tmp_path / "out", probabilities=True, npz=True)
    volume = read_image(path)
    expected = predictor.probabilities(volume.array, volume.geometry)
    stored = nib.load(tmp_path / "out" / f"{codes}_probabilities.nii.gz")
    image = nib.load(path)
    assert stored.shape == (*image.shape, 3)
    np.testing.assert_array_equal(stored.affine, image.affine)
    for code in ("qform_code", "sform_code", "xyzt_units"):
        assert stored.header[code] == nib.load(label_map).header[code]
    values = stored.get_fdata()
    np.testing.assert_allclose(values.sum(-1), 1, atol=1.5 / 65535 + 1e-9)
    with np.load(tmp_path / "out" / f"{codes}.npz", allow_pickle=False) as file:
        nnunets = file["probabilities"]
    assert nnunets.dtype == np.float16
    assert nnunets.shape == (3, *image.shape[::-1])
    for label in range(3):
        shares = volume.geometry.to_canonical(values[..., label])
        np.testing.assert_allclose(shares, expected[label], atol=0.5 / 65535 + 1e-6)
        halves = volume.geometry.to_canonical(nnunets[label].transpose(2, 1, 0))
        np.testing.assert_allclose(halves, expected[label], rtol=2**-11, atol=1e-6)
    for which in (tmp_path / "out" / f"{codes}_probabilities.nii.gz", label_map):  # another reader, and its grid
        other = sitk.ReadImage(str(which))
        np.testing.assert_allclose(other.GetSpacing()[:3], sitk.ReadImage(str(path)).GetSpacing(), rtol=1e-5)
    seen = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / f"{codes}_probabilities.nii.gz")))
    np.testing.assert_allclose(seen.transpose(3, 2, 1, 0), values, atol=1e-6)


class Argmax:
    """What nnU-Net's label manager does without regions."""

    def convert_probabilities_to_segmentation(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities.argmax(0)


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_nnunets_ensembling_of_two_is_our_ensemble(recipe: Recipe, tmp_path: Path, reader: Any) -> None:
    path = turned(tmp_path, "PIR")
    one, two = made(recipe, 1), made(recipe, 2)
    for name, predictor in (("one", one), ("two", two)):
        predictor.files(path, tmp_path / name, npz=True)
    files = [str(tmp_path / name / "PIR.npz") for name in ("one", "two")]
    manager: Any = Argmax()
    merge_files(files, str(tmp_path / "merged"), ".nii.gz", reader(), manager)
    both = Predictor(recipe, [*one.models, *two.models], device="cpu")
    (ours,) = both.files(path, tmp_path / "both")
    merged, label_map = nib.load(tmp_path / "merged.nii.gz"), nib.load(ours)
    np.testing.assert_allclose(merged.affine, label_map.affine, atol=1e-5)
    volume = read_image(path)
    sorted_ = np.sort(both.probabilities(volume.array, volume.geometry), 0)
    is_clear = (sorted_[-1] - sorted_[-2]) > 1e-3  # of float16
    assert is_clear.mean() > 0.95
    assert len(np.unique(read_labels(ours).array)) > 1
    np.testing.assert_array_equal(
        read_labels(tmp_path / "merged.nii.gz").array[is_clear], read_labels(ours).array[is_clear]
    )


def test_evaluate_reads_them(recipe: Recipe, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", cases=2)
    made(recipe).files(data / "imagesTr", tmp_path / "out", probabilities=True, npz=True)
    summary = evaluate_folders(tmp_path / "out", data / "labelsTr", metrics=["brier"])
    assert len(summary["metrics"]["brier"]["cases"]) == 2
    assert summary["unreferenced"] == []


def test_a_case_is_finished_with_all_that_was_asked_for(recipe: Recipe, dataset: Path, tmp_path: Path) -> None:
    predictor, source, out = made(recipe), dataset / "imagesTr" / "case_00_0000.nii.gz", tmp_path / "out"
    assert len(predictor.files(source, out)) == 1
    assert len(predictor.files(source, out, probabilities=True, npz=True)) == 1
    assert {path.name for path in out.iterdir()} == FILES | {STAMP}
    assert set(json.loads((out / STAMP).read_text())["files"]) == FILES
    assert predictor.files(source, out, probabilities=True, npz=True) == predictor.files(source, out) == []
    for name in FILES:
        (out / name).unlink()
        assert len(predictor.files(source, out, probabilities=True, npz=True)) == 1
    assert len(predictor.files(source, out, overwrite=True)) == 1
    assert {path.name for path in out.iterdir()} == {"case_00.nii.gz", STAMP}, "no probabilities of another prediction"


def test_forms_are_asked_for_one_after_the_other(recipe: Recipe, dataset: Path, tmp_path: Path) -> None:
    """The second stands beside the first, unless another prediction takes their place."""
    predictor, source, out = made(recipe), dataset / "imagesTr" / "case_00_0000.nii.gz", tmp_path / "out"
    first = out / "case_00_probabilities.nii.gz"
    predictor.files(source, out, probabilities=True)
    before = first.read_bytes()
    assert len(predictor.files(source, out, npz=True)) == 1
    assert {path.name for path in out.iterdir()} == FILES | {STAMP}
    assert first.read_bytes() == before
    assert set(json.loads((out / STAMP).read_text())["files"]) == FILES
    assert predictor.files(source, out, probabilities=True, npz=True) == []
    assert len(predictor.files(source, out, npz=True, overwrite=True)) == 1
    only_npz = FILES - {first.name} | {STAMP}
    assert {path.name for path in out.iterdir()} == only_npz
    predictor.files(source, out, probabilities=True)
    (out / "case_00.nii.gz").unlink()  # what is predicted now may be of another image
    assert len(predictor.files(source, out, npz=True)) == 1
    assert {path.name for path in out.iterdir()} == only_npz
    predictor.files(source, out, probabilities=True, overwrite=True)
    image = nib.load(source)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine, image.header), source)
    assert len(predictor.files(source, out, npz=True)) == 1
    assert {path.name for path in out.iterdir()} == only_npz
    for other in (made(recipe, 1), made(load_recipe(recipe, {"inference.overlap": 0.25}))):
        predictor.files(source, out, probabilities=True, overwrite=True)
        assert "made" in refusal(lambda other=other: other.files(source, out, npz=True))
        assert len(other.files(source, out, npz=True, overwrite=True)) == 1
        assert {path.name for path in out.iterdir()} == only_npz


def test_files_of_others_stay(recipe: Recipe, dataset: Path, tmp_path: Path) -> None:
    predictor, source, out = made(recipe), dataset / "imagesTr" / "case_00_0000.nii.gz", tmp_path / "out"
    out.mkdir()
    (out / "case_00.npz").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"case_00\.npz: made by something unknown"):
        predictor.files(source, out, npz=True, overwrite=True)
    assert len(predictor.files(source, out)) == 1
    assert (out / "case_00.npz").read_bytes() == b"mine"
    (out / "case_00.npz").unlink()
    twin = tmp_path / "case_00_probabilities_0000.nii.gz"
    twin.write_bytes(source.read_bytes())
    line = refusal(lambda: predictor.files([source, twin], tmp_path / "new", probabilities=True))
    assert "two inputs would be written to the same file" in line


def test_what_was_predicted_among_images_is_no_image(recipe: Recipe, dataset: Path) -> None:
    predictor, images = made(recipe), dataset / "imagesTr"
    assert len(predictor.files(images, images, probabilities=True)) == 4
    assert predictor.files(images, images, probabilities=True) == []
