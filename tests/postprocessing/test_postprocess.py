"""From the label maps of a study to `postprocessing.json`, and from there to those of `predict`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import main
from maskmed_zoo.data.formats import read_image, read_labels
from maskmed_zoo.errors import ArgumentError, CheckpointError, DataError
from maskmed_zoo.files import sha256_of
from maskmed_zoo.inference.postprocessing import Postprocessing, Step
from maskmed_zoo.inference.write import Prediction, write_prediction
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.weights.card import POSTPROCESSING
from tests.conftest import TINY, make_dataset

CASES, FOLDS = 24, 2
SMALL = {"label": "left", "do": "remove_small", "below_mm3": 24.0, "at": None}
LARGEST = {"label": "right", "do": "keep_largest", "below_mm3": None, "at": None}
QUICK = {"train.epochs": 1, "train.iterations_per_epoch": 1, "train.validation_iterations": 0}
QUICK |= {"model.head.kind": "pointwise", "model.loss.kind": "ce_dice"}


def planted(reference: np.ndarray, index: int) -> np.ndarray:
    """The left box with a false voxel far from it, and the right one in two parts, both of them right."""
    found = reference.copy()
    (z, y, x), right = np.argwhere(reference == 1)[0], np.argwhere(reference == 2)
    found[z, y : y + 1 + index % 3, x] = 0
    found[-1, 0, -1] = 1
    found[right[:, 0].min() + 1][reference[right[:, 0].min() + 1] == 2] = 0
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two folds with planted label maps of its validation cases, twelve each."""
    root = tmp_path_factory.mktemp("postprocess")
    data = make_dataset(root / "Dataset001_Boxes", CASES)
    names = [f"case_{index:02d}" for index in range(CASES)]
    parts = [names[fold::FOLDS] for fold in range(FOLDS)]
    splits = [{"train": parts[1 - fold][:4], "val": parts[fold]} for fold in range(FOLDS)]
    (data / "splits_final.json").write_text(json.dumps(splits))
    (root / "tiny.yaml").write_text(TINY)
    recipe = load_recipe(root / "tiny.yaml", QUICK)
    for fold in range(FOLDS):
        run = zoo.train(recipe, data=data, out=root / "study" / f"fold_{fold}", fold=fold, device="cpu")
        weights = sha256_of(run / "weights_last.safetensors")
        for index, name in enumerate(parts[fold]):
            reference = read_labels(data / "labelsTr" / f"{name}.nii.gz")
            prediction = Prediction(planted(reference.array, index), None, reference.geometry)
            write_prediction(run / "predictions" / f"{name}.nii.gz", prediction, recipe.labels, weights)
    return root


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "study", tmp_path / "study")


def test_what_truly_helps_is_kept_over_all_folds(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["postprocess", str(study), "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert not (study / POSTPROCESSING).exists()
    assert "24 validation cases of 24 patients, last weights" in printed.out
    assert "Kept: left: remove_small < 24 mm³." in printed.out
    assert "too favourable" in printed.out
    assert "Chosen on other patients than those it is applied to, the change is +0." in printed.out
    assert main(["postprocess", str(study), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((study / POSTPROCESSING).read_text())
    assert found["steps"] == [SMALL]
    rows = {(row["label"], row["do"], row["below_mm3"]): row for row in found["candidates"]}
    assert rows["left", "remove_small", 24.0]["better"] == CASES
    assert rows["left", "keep_largest", None]["verdict"] == "changes the same as one above"
    assert rows["right", "keep_largest", None]["verdict"] == "makes it worse"
    assert rows["right", "fill_holes", None]["p"] is None
    before = [read_labels(path).array for path in sorted(study.glob("*/predictions/*.nii.gz"))]
    assert all(labels[-1, 0, -1] == 1 for labels in before), "what it was chosen on stays as it was"


def test_the_change_is_that_of_evaluate(study: Path, made: Path, tmp_path: Path) -> None:
    """All label maps processed by hand and scored by the program's other way."""
    found = zoo.postprocess(study)
    means: list[float] = []
    for steps in ((), (Step.model_validate(SMALL),)):
        out = tmp_path / f"by_hand_{len(steps)}"
        out.mkdir()
        for path in study.glob("*/predictions/*.nii.gz"):
            volume = read_labels(path)
            labels = Postprocessing(steps, {"background": 0, "left": 1, "right": 2}).apply(volume.array, volume.spacing)
            write_prediction(
                out / path.name,
                Prediction(labels, None, volume.geometry),
                load_recipe(made / "tiny.yaml").labels,
                "any",
            )
        means.append(zoo.evaluate(pred=out, ref=made / "Dataset001_Boxes" / "labelsTr")["mean_dice"])
    assert found["together"]["mean"] == pytest.approx(means[1] - means[0], abs=1e-12)
    assert means[1] > means[0]


def test_predict_applies_it_and_does_without(
    study: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image, *_) = sorted((made / "Dataset001_Boxes" / "imagesTr").glob("*.nii.gz"))
    words = ["predict", str(study), str(image), str(tmp_path / "out"), "--device", "cpu"]
    zoo.postprocess(study)
    document = json.loads((study / POSTPROCESSING).read_text())
    steps = [LARGEST, SMALL | {"below_mm3": 1e9}]
    (study / POSTPROCESSING).write_text(json.dumps(document | {"steps": steps}))
    raw = zoo.load(study, device="cpu", postprocess=False)
    volume = read_image(image)
    plain = raw.segment(volume.array, volume.geometry).labels
    how = Postprocessing(tuple(map(Step.model_validate, steps)), raw.labels)
    expected = how.apply(plain.copy(), volume.geometry.spacing)
    assert (expected != plain).any()
    assert main(words) == 0
    (target,) = (tmp_path / "out").glob("*.nii.gz")
    np.testing.assert_array_equal(read_labels(target).array, expected)
    assert main(words) == 0
    assert "1 finished before and skipped" in capsys.readouterr().err
    assert main([*words, "--no-postprocess"]) == 2
    assert "made with other settings" in capsys.readouterr().err
    assert main([*words, "--no-postprocess", "--overwrite"]) == 0
    np.testing.assert_array_equal(read_labels(target).array, plain)
    assert zoo.load(study, device="cpu").settings != raw.settings


def test_a_choice_for_other_weights_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = study / "fold_0"
    zoo.postprocess(run)
    weights = run / "weights_last.safetensors"
    shutil.copy(study / "fold_1" / weights.name, weights)
    with pytest.raises(CheckpointError, match=r"postprocessing\.json: chosen for other weights .*--no-postprocess"):
        zoo.load(run, device="cpu")
    assert zoo.load(run, device="cpu", postprocess=False).postprocessing is None
    assert main(["postprocess", str(run)]) == 2
    told = capsys.readouterr().err
    assert told.count("no label map of the last weights; 'maskmed-zoo evaluate") == CASES // FOLDS
    assert "nothing is chosen" not in told, "none can be used"


def test_cases_that_cannot_be_used(study: Path, made: Path, tmp_path: Path) -> None:
    zoo.postprocess(study)
    before = (study / POSTPROCESSING).read_text()
    (target, *_) = sorted((study / "fold_1" / "predictions").glob("*.nii.gz"))
    target.unlink()
    with pytest.raises(DataError, match=r"case_01\.nii\.gz: no label map of the last .*1 of 24 cases; nothing"):
        zoo.postprocess(study)
    assert (study / POSTPROCESSING).read_text() == before
    (study / "fold_1" / "weights_best.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights_best\.safetensors: is missing"):
        zoo.postprocess(study, weights="best")
    with pytest.raises(CheckpointError, match="no run here"):
        zoo.postprocess(tmp_path)
    with pytest.raises(ArgumentError, match="expected 'last' or 'best'"):
        zoo.postprocess(study, weights="first")  # type: ignore[arg-type]


def test_patients_of_folds_are_the_same_people(study: Path, made: Path, tmp_path: Path) -> None:
    """Three patients with cases in both folds are three, too few to show anything."""
    data = shutil.copytree(made / "Dataset001_Boxes", tmp_path / "Dataset001_Boxes")
    groups = {f"case_{index:02d}": f"patient_{index % 3}" for index in range(CASES)}
    (data / "groups.json").write_text(json.dumps(groups))
    found = zoo.postprocess(study, data=data, dry_run=True)
    assert found["patients"] == 3
    assert found["steps"] == []
