"""Prediction: the input's own geometry, orientations, several channels, skipping, folders, and scores."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from maskmed_zoo.data.formats import read_image, read_labels
from maskmed_zoo.data.inputs import input_cases
from maskmed_zoo.data.predicted import STAMP
from maskmed_zoo.errors import ArgumentError, CheckpointError, DataError, OutputError
from maskmed_zoo.files import write_json
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.evaluate import evaluate
from maskmed_zoo.runner.load import load
from maskmed_zoo.runner.predict import predict
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.train import train

Factory = Callable[[], RunFolder]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run trained for a few steps: its labels are arbitrary, but a function of the image."""
    from tests.conftest import TINY, make_dataset

    folder = tmp_path_factory.mktemp("predict")
    (folder / "tiny.yaml").write_text(TINY)
    overrides = ["train.epochs=1", "train.iterations_per_epoch=50", "train.optimizer.lr=1e-2"]
    overrides += [
        "model.head.kind=pointwise",
        "model.loss.kind=ce_dice",
        "data.augmentation={kind: light, spatial_probability: 0}",
    ]
    recipe = load_recipe(folder / "tiny.yaml", overrides)
    return train(recipe, data=make_dataset(folder / "data"), out=folder / "run", device="cpu")


def source(run: RunFolder) -> Path:
    return run.path.parent / "data" / "imagesTr" / "case_00_0000.nii.gz"


def reoriented(path: Path, codes: str, folder: Path) -> Path:
    image = nib.load(path)
    transform = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(codes)))
    target = folder / f"{codes}.nii.gz"
    nib.save(image.as_reoriented(transform), target)
    return target


def test_orientation_does_not_matter(run: RunFolder, tmp_path: Path) -> None:
    (original,) = predict(run, [source(run)], tmp_path / "out", device="cpu")
    expected = read_labels(original).array
    assert len(np.unique(expected)) > 1, "a constant label map would prove nothing"
    for codes in ("LAS", "PIR", "SRA", "RAS"):
        path = reoriented(source(run), codes, tmp_path)
        (written,) = predict(run, [path], tmp_path / "turned", device="cpu")
        stored, image = nib.load(written), nib.load(path)
        assert "".join(nib.aff2axcodes(stored.affine)) == codes
        assert stored.shape == image.shape
        np.testing.assert_array_equal(stored.affine, image.affine)
        assert stored.header.get_xyzt_units() == image.header.get_xyzt_units()
        np.testing.assert_array_equal(read_labels(written).array, expected)


def test_other_spacing_comes_back_on_its_own_grid(run: RunFolder, tmp_path: Path) -> None:
    image = nib.load(source(run))
    affine = image.affine @ np.diag([0.7, 1.3, 0.8, 1])
    path = tmp_path / "stretched.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    (written,) = predict(run, [path], tmp_path / "one.nii.gz", device="cpu")
    assert written == tmp_path / "one.nii.gz"
    assert nib.load(written).shape == image.shape


def test_finished_cases_are_skipped(run: RunFolder, tmp_path: Path) -> None:
    folder = source(run).parent
    assert len(predict(run, [folder], tmp_path / "out", device="cpu")) == 4
    (tmp_path / "out" / "case_02.nii.gz").unlink()
    assert predict(run, [folder], tmp_path / "out", device="cpu") == [tmp_path / "out" / "case_02.nii.gz"]
    assert len(predict(run, [folder], tmp_path / "out", device="cpu", overwrite=True)) == 4
    assert {p.name for p in (tmp_path / "out").iterdir()} == {STAMP} | {f"case_0{i}.nii.gz" for i in range(4)}


def test_a_bad_case_leaves_the_finished_ones(run: RunFolder, tmp_path: Path) -> None:
    broken = tmp_path / "zz_0000.nii.gz"
    broken.write_bytes(source(run).read_bytes()[:500])
    with pytest.raises(DataError, match=r"zz_0000\.nii\.gz: not a readable NIfTI"):
        predict(run, [source(run), broken], tmp_path / "out", device="cpu")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {STAMP, "case_00.nii.gz"}


def test_two_inputs_of_one_name_are_refused(run: RunFolder, tmp_path: Path) -> None:
    twin = tmp_path / source(run).name
    twin.write_bytes(source(run).read_bytes())
    with pytest.raises(DataError, match=r"'case_00' is there twice"):
        predict(run, [source(run), twin], tmp_path / "out", device="cpu")
    with pytest.raises(DataError, match="written to the same file"):
        predict(run, [source(run).parent, twin], tmp_path / "out", device="cpu")


def test_evaluation_states_its_terms(run: RunFolder) -> None:
    result = evaluate(run, device="cpu")
    assert json.loads(run.evaluation_file.read_text()) == result
    assert result["test_time_augmentation"] is False
    assert result["weights"] == "last"
    assert result["weights_sha256"] == load(run, device="cpu").weights_sha256
    assert "definition" in result


def test_probabilities_are_those_of_the_network(run: RunFolder, tmp_path: Path) -> None:
    result = evaluate(run, device="cpu", metrics=["brier"])
    written = {path.name: path.read_bytes() for path in run.predictions.glob("*.nii.gz")}
    predictor, data = load(run, device="cpu"), run.path.parent / "data"
    for case in result["metrics"]["brier"]["cases"]:
        volume = read_image(data / "imagesTr" / f"{case['case']}_0000.nii.gz")
        reference = read_labels(data / "labelsTr" / f"{case['case']}.nii.gz").array
        probabilities = predictor.probabilities(volume.array, volume.geometry)
        for name, value in predictor.labels.foreground.items():
            expected = ((probabilities[value].astype(float) - (reference == value)) ** 2).mean()
            assert case["brier"][name] == pytest.approx(expected, rel=1e-6)
    assert result["calibration"]["most_probable"]["voxels"] > 0
    assert (run.path / "reliability.png").is_file()
    before = evaluate(run, device="cpu")
    assert not (run.path / "reliability.png").exists()
    assert before["mean_dice"] == result["mean_dice"]
    assert written == {path.name: path.read_bytes() for path in run.predictions.glob("*.nii.gz")}


def test_a_run_without_matplotlib_has_scores_and_no_picture(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(run, device="cpu")
    assert (run.path / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("maskmed_zoo.runner.evaluate.can_draw", lambda: False)
    evaluate(run, device="cpu")
    assert not (run.path / "evaluation.png").exists()
    assert "no picture of cases" in capsys.readouterr().err


def test_moved_data_set_is_named(run: RunFolder, tmp_path: Path) -> None:
    manifest = run.manifest()
    moved = [record | {"path": str(tmp_path / "gone")} for record in manifest["data"]]
    write_json(run.manifest_file, manifest | {"data": moved})
    with pytest.raises(DataError, match="gone: no such folder"):
        evaluate(run, device="cpu")
    evaluate(run, data=run.path.parent / "data", device="cpu")
    write_json(run.manifest_file, manifest)


def test_channels_go_by_their_number_and_years_are_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = tmp_path / "b" / "p_0000.nii.gz", tmp_path / "a" / "p_0001.nii.gz"
    years = [tmp_path / f"scan_{year}.nii.gz" for year in (2019, 2020)]
    for path in (first, second, *years):
        path.touch()
    (case,) = input_cases([second, first], ["T1", "T2"])
    assert case.images == (first, second)
    assert [c.identifier for c in input_cases(years, ["CT"])] == ["scan_2019", "scan_2020"]
    assert input_cases([first], ["CT"])[0].identifier == "p"
    with pytest.raises(DataError, match=r"has 1 channel files \(_0001\), the model takes 2 \(T1, T2\)"):
        input_cases([second], ["T1", "T2"])


def test_outputs_that_cannot_be_written(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: is a file; give a folder"):
        predict(run, [source(run)], tmp_path / "file", device="cpu")
    with pytest.raises(OutputError, match="cannot be made a folder"):
        predict(run, [source(run)], tmp_path / "file" / "below", device="cpu")


def test_evaluation_refuses_a_data_set_with_other_labels(run: RunFolder, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run.path.parent / "data", other)
    text = (other / "dataset.json").read_text()
    (other / "dataset.json").write_text(text.replace('"left": 1, "right": 2', '"right": 1, "left": 2'))
    with pytest.raises(DataError, match="give the run's data set as it was"):
        evaluate(run, data=other, device="cpu")


@pytest.mark.parametrize("content", [b"{}", b"[]", b"{", b"\xff\xfe"])
def test_broken_manifest(run: RunFolder, content: bytes) -> None:
    whole = run.manifest_file.read_bytes()
    run.manifest_file.write_bytes(content)
    try:
        with pytest.raises(CheckpointError, match=r"manifest\.json: cannot be read"):
            load(run, device="cpu")
    finally:
        run.manifest_file.write_bytes(whole)


def test_formats_side_by_side(run, dataset, tmp_path):
    """A file that was renamed to what it is, is still predicted; of two of one name, which is meant?"""
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((dataset / "imagesTr").iterdir()):
        (images / path.name).write_bytes(path.read_bytes())
    packed = images / "case_01_0000.nii.gz"
    (images / "case_01_0000.nii").write_bytes(gzip.decompress(packed.read_bytes()))
    predictor = load(run, device="cpu")
    with pytest.raises(DataError, match="'case_01_0000' is there in files of several formats"):
        predictor.files(images, tmp_path / "out")
    packed.unlink()
    assert len(predictor.files(images, tmp_path / "out")) == 4
    with pytest.raises(ArgumentError, match="no inputs"):
        predictor.files([], tmp_path / "none")
    assert not (tmp_path / "none").exists()
