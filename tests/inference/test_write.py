"""Files of a predicted case: separated objects, what counts as finished, and whose weights made them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from maskmed_zoo.data.formats import read_labels
from maskmed_zoo.data.predicted import STAMP, files_of
from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.inference import write as predictions
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.evaluate import evaluate
from maskmed_zoo.runner.load import load
from maskmed_zoo.runner.predict import predict
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.train import train

QUERIES = ["model.head.num_queries=6", "train.optimizer.transformer_scale=1", "model.neck.kind=skip"]
LOGITS = ["model.head.kind=pointwise", "model.loss.kind=ce_dice"]


def trained(folder: Path, overrides: list[str]) -> RunFolder:
    """A run of a few steps that tells the objects of boxes apart."""
    from tests.conftest import TINY, make_dataset

    (folder / "tiny.yaml").write_text(TINY)
    common = ["train.epochs=1", "train.iterations_per_epoch=60", "train.optimizer.lr=1e-2", "data.instances=components"]
    common += ["data.augmentation={kind: light, spatial_probability: 0, intensity_probability: 0}"]
    recipe = load_recipe(folder / "tiny.yaml", common + overrides)
    return train(recipe, data=make_dataset(folder / "data"), out=folder / "run", device="cpu")


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("queries"), QUERIES)


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("logits"), LOGITS)


def images(run: RunFolder) -> Path:
    return run.path.parent / "data" / "imagesTr"


def copied(run: RunFolder, folder: Path) -> RunFolder:
    """The run with other weights, in that the file has other bytes."""
    shutil.copytree(run.path, folder)
    other = RunFolder(folder)
    predictor = load(other, device="cpu")
    next(iter(predictor.model.parameters())).data += 1e-6
    other.save_weights(predictor.model, "last", predictor.recipe)
    return other


@pytest.mark.parametrize("kind", ["queries", "logits"])
def test_objects_beside_the_label_map(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run: RunFolder = request.getfixturevalue(kind)
    written = predict(run, [images(run)], tmp_path, device="cpu")
    assert [path.name for path in written] == [f"case_0{i}.nii.gz" for i in range(4)]
    seen, found = set[str](), 0
    for target in written:
        numbers_file, facts_file, _ = files_of(target, with_instances=True)
        assert facts_file.name == target.name.replace(".nii.gz", "_instances.json")
        labels, numbers = read_labels(target), read_labels(numbers_file)
        np.testing.assert_array_equal(nib.load(numbers_file).affine, nib.load(target).affine)
        np.testing.assert_array_equal(numbers.array > 0, labels.array > 0)
        facts = json.loads(facts_file.read_text())
        assert sorted(map(int, facts)) == np.unique(numbers.array[numbers.array > 0]).tolist()
        for number, fact in facts.items():
            inside = numbers.array == int(number)
            (value,) = np.unique(labels.array[inside])
            assert fact["label"] == ["background", "left", "right"][value]
            assert fact["volume_mm3"] == pytest.approx(inside.sum() * np.prod(labels.spacing))
            assert fact["score"] is None or (kind == "queries" and 0.5 <= fact["score"] <= 1)
            seen.add("with" if fact["score"] else "without")
            found += 1
        if kind == "logits":
            parts = sum(ndimage.label(labels.array == v, np.ones((3, 3, 3)))[1] for v in (1, 2))
            assert parts == len(facts)
    assert found >= 4
    assert ("with" if kind == "queries" else "without") in seen


def test_the_model_runs_once_for_each_window(queries: RunFolder) -> None:
    predictor = load(queries, device="cpu")
    calls: list[int] = []
    predictor.model.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    image = np.random.default_rng(0).normal(size=(1, 12, 24, 24)).astype(np.float32)
    prediction = predictor.segment(image, spacing=(2.0, 1.0, 1.0))
    assert sum(calls) == 2 * 2 * 2  # windows of 8 16 16
    assert prediction.instances is not None


def test_a_case_is_finished_with_its_last_file(queries: RunFolder, tmp_path: Path) -> None:
    source = images(queries) / "case_00_0000.nii.gz"
    (target,) = predict(queries, [source], tmp_path, device="cpu")
    assert predict(queries, [source], tmp_path, device="cpu") == []
    files = files_of(target, with_instances=True)
    assert len(files) == 3
    for path in files:
        path.unlink()
        assert predict(queries, [source], tmp_path, device="cpu") == [target]
        assert all(file.exists() for file in files)


def test_interrupted_between_files(queries: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written first, the next prediction does the case again and refuses nothing."""
    source = images(queries) / "case_00_0000.nii.gz"
    other = copied(queries, tmp_path / "other")
    write, out = predictions.write_labels, tmp_path / "out"

    for failing in (1, 2):
        predict(other, [source], out, device="cpu", overwrite=True)
        written = 0

        def broken(*arguments: Any) -> None:
            nonlocal written
            written += 1
            if written == failing:  # noqa: B023
                raise KeyboardInterrupt
            write(*arguments)

        monkeypatch.setattr(predictions, "write_labels", broken)
        with pytest.raises(KeyboardInterrupt):
            predict(queries, [source], out, device="cpu", overwrite=True)
        monkeypatch.setattr(predictions, "write_labels", write)
        assert predict(queries, [source], out, device="cpu") == [out / "case_00.nii.gz"]


def test_predictions_of_other_weights_are_not_taken_for_finished(logits: RunFolder, tmp_path: Path) -> None:
    out, other = tmp_path / "out", copied(logits, tmp_path / "other")
    predict(logits, [images(logits)], out, device="cpu")
    stamp = json.loads((out / STAMP).read_text())["weights_sha256"]
    assert stamp == {f"case_0{i}.nii.gz": load(logits, device="cpu").weights_sha256 for i in range(4)}
    before = (out / "case_00.nii.gz").stat().st_mtime_ns
    with pytest.raises(DataError, match=r"case_00\.nii\.gz and 3 more: made by other weights; .*--overwrite") as caught:
        predict(other, [images(logits)], out, device="cpu")
    assert "\n" not in str(caught.value)
    assert (out / "case_00.nii.gz").stat().st_mtime_ns == before
    assert len(predict(other, [images(logits)], out, device="cpu", overwrite=True)) == 4
    assert predict(other, [images(logits)], out, device="cpu") == []
    for damage in ("{", "[]", '{"weights_sha256": 1}'):
        (out / STAMP).write_text(damage)
        with pytest.raises(DataError, match="made by something unknown"):
            predict(other, [images(logits)], out, device="cpu")


def test_evaluation_scores_objects(queries: RunFolder, logits: RunFolder, tmp_path: Path) -> None:
    for run in (queries, logits):
        result = evaluate(run, device="cpu")
        objects = result["instances"]
        assert list(objects["labels"]) == ["left", "right"]
        assert [case["case"] for case in objects["cases"]] == run.manifest()["validation"]
        assert objects["tp"] + objects["fn"] == 2 * len(objects["cases"])  # a box each
        folders = evaluate_folders(run.predictions, references(run, tmp_path / run.path.parent.name))
        assert folders["instances"]["labels"] == objects["labels"]


def references(run: RunFolder, folder: Path) -> Path:
    """Label maps of the validation cases alone."""
    shutil.copytree(run.path.parent / "data" / "labelsTr", folder)
    for path in folder.iterdir():
        if path.name.removesuffix(".nii.gz") not in run.manifest()["validation"]:
            path.unlink()
    shutil.copy(run.path.parent / "data" / "dataset.json", folder)
    return folder


def test_evaluation_reads_the_map_of_objects(logits: RunFolder, tmp_path: Path) -> None:
    """Every box in two halves by the map: twice as many objects in the reference."""
    shutil.copytree(logits.path.parent, tmp_path / "all")
    data, run = tmp_path / "all" / "data", RunFolder(tmp_path / "all" / "run")
    text = run.recipe_file.read_text()
    assert "instances: components" in text
    run.recipe_file.write_text(text.replace("instances: components", "instances: map"))
    with pytest.raises(DataError, match="instancesTr"):
        evaluate(run, data=data, device="cpu")
    (data / "instancesTr").mkdir()
    for path in (data / "labelsTr").iterdir():
        stored = nib.load(path)
        labels = np.asarray(stored.dataobj)
        upper = np.arange(labels.shape[1])[:, None] >= labels.any((0, 2)).argmax() + 3
        numbers = np.where(labels > 0, labels + 2 * upper, 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(numbers, stored.affine), data / "instancesTr" / path.name)
    objects = evaluate(run, data=data, device="cpu")["instances"]
    assert objects["tp"] + objects["fn"] == 4 * len(objects["cases"])
