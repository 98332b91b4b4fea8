"""`postprocess --thresholds` on a run whose network is too shy of one label: from its probabilities to `predict`."""

from __future__ import annotations

import json
import shutil
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import main
from maskmed_zoo.data.formats import read_image, read_labels
from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.metrics.dice import dice_per_label
from maskmed_zoo.inference.write import Prediction, write_prediction
from maskmed_zoo.postprocessing import recomputed
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.run_folder import RunFolder, save_model
from maskmed_zoo.weights.card import POSTPROCESSING
from tests.conftest import TINY, make_dataset

CASES = 16
QUICK = {"train.epochs": 1, "train.iterations_per_epoch": 80, "train.validation_iterations": 0}
QUICK |= {"model.head.kind": "pointwise", "model.loss.kind": "ce_dice", "train.optimizer.lr": 1e-2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was scored, whose head was told afterwards to give 'right' 3/7 of its odds."""
    root = tmp_path_factory.mktemp("thresholds")
    data = make_dataset(root / "Dataset001_Boxes", CASES)
    names = [f"case_{index:02d}" for index in range(CASES)]
    (data / "splits_final.json").write_text(json.dumps([{"train": names[:4], "val": names[4:]}]))
    (root / "tiny.yaml").write_text(TINY)
    recipe = load_recipe(root / "tiny.yaml", QUICK)
    run = RunFolder(zoo.train(recipe, data=data, out=root / "run", fold=0, device="cpu"))
    model: Any = zoo.load(run.path, device="cpu").model
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.endswith("bias") and parameter.shape == (3,):
                parameter[2] += log(0.3 / 0.7)
    save_model(run.weights_file("last"), model, recipe)
    zoo.evaluate(run.path, device="cpu")
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "run", tmp_path / "run")


def test_what_truly_helps_is_found_and_predicted_with(
    run: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every row from all probabilities at once, and the change that it brings from label maps of `predict`."""
    images, references = made / "Dataset001_Boxes" / "imagesTr", made / "Dataset001_Boxes" / "labelsTr"
    before = {path.name: path.read_bytes() for path in (run / "predictions").glob("*.nii.gz")}
    assert main(["postprocess", str(run), "--thresholds", "--device", "cpu", "--json"]) == 0
    printed = capsys.readouterr()
    assert "computing probabilities: 12" in printed.err
    found = json.loads(printed.out)
    rows = {(row["label"], row["at"]): row for row in found["candidates"] if row["do"] == "threshold"}
    assert len(rows) == 12
    steps = [step for step in found["steps"] if step["do"] == "threshold"]
    assert ("right", 0.3) in [(step["label"], step["at"]) for step in steps]
    assert {path.name: path.read_bytes() for path in (run / "predictions").glob("*.nii.gz")} == before
    plain, checked = zoo.load(run, device="cpu", postprocess=False), 0
    (tmp_path / "ref").mkdir()
    cases, tried = list[tuple[np.ndarray, np.ndarray]](), dict[str, list[list[float]]]()
    for name in before:
        volume = read_image(images / name.replace(".nii.gz", "_0000.nii.gz"))
        p = plain.probabilities(volume.array, volume.geometry).astype(np.float64)
        cases.append((p, read_labels(shutil.copy(references / name, tmp_path / "ref" / name)).array))
    for (label, at), row in rows.items():
        weights, changes, others = np.ones((3, 1, 1, 1)), list[float](), list[float]()
        weights[plain.labels[label]] = (1 - at) / at
        for p, reference in cases:
            dice = [dice_per_label(labels, reference, [1, 2]) for labels in (p.argmax(0), (weights * p).argmax(0))]
            change = {value: (dice[1][value] or 0) - (dice[0][value] or 0) for value in (1, 2)}
            changes.append(sum(change.values()))
            others.append(changes[-1] - change[plain.labels[label]])
        if row["mean"] is not None:
            assert row["mean"] == pytest.approx(np.mean(changes), abs=1e-9)
            assert row["others"] == pytest.approx(np.mean(others), abs=1e-9)
            checked += 1
        elif row["verdict"] == "changes the same as one above":
            assert any(np.allclose(changes, earlier) for earlier in tried[label])
        else:
            assert row["verdict"] == "changes no score"
            assert not any(changes)
        tried.setdefault(label, []).append(changes)
    assert checked >= 3
    for name, load in (("without", plain), ("with", zoo.load(run, device="cpu"))):
        load.files([images / case.replace(".nii.gz", "_0000.nii.gz") for case in before], tmp_path / name)
    scores = [zoo.evaluate(pred=tmp_path / name, ref=tmp_path / "ref")["mean_dice"] for name in ("without", "with")]
    assert found["together"]["mean"] == pytest.approx(scores[1] - scores[0], abs=1e-9)
    assert found["cross_fitted"]["mean"] == found["together"]["mean"] > 0


def test_the_table_tells_thresholds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["postprocess", str(run), "--thresholds", "--dry-run", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert not (run / POSTPROCESSING).exists()
    assert "threshold .3" in printed.out
    assert "right: threshold .3." in printed.out
    assert "Chosen on other patients" in printed.out


def test_without_the_flag_no_network_is_loaded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputed, "load", None)
    found = zoo.postprocess(run)
    assert not [row for row in found["candidates"] if row["do"] == "threshold"]


def changed(run: Path, voxels: int, settings: dict[str, Any] | None = None) -> str:
    """The name of a case whose label map got a block of another label, as if `evaluate` had written it."""
    predictor = zoo.load(run, device="cpu")
    path = min((run / "predictions").glob("*.nii.gz"))
    volume = read_labels(path)
    volume.array[0, 0, :voxels] = 1
    prediction = Prediction(volume.array, None, volume.geometry)
    write_prediction(path, prediction, predictor.labels, predictor.weights_sha256, settings=settings)
    return path.name.removesuffix(".nii.gz")


def test_label_maps_that_the_network_does_not_give_are_refused(run: Path) -> None:
    name = changed(run, 9)
    with pytest.raises(DataError, match=rf"case '{name}': the network does not give .* evaluate .*anew"):
        zoo.postprocess(run, thresholds=True, device="cpu")
    assert not (run / POSTPROCESSING).exists()


def test_a_voxel_that_rounding_changed_is_left_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recomputed, "DIFFERING", 0.02)
    changed(run, 1)
    assert zoo.postprocess(run, thresholds=True, device="cpu", dry_run=True)["steps"]
    assert "1 of 12 cases: up to 0." in capsys.readouterr().err


def test_label_maps_of_other_settings_are_refused(run: Path) -> None:
    """Those of `predict --set`, or of a recipe that was changed since; without thresholds too."""
    changed(run, 0, {"overlap": 0.75})
    with pytest.raises(DataError, match=r"made with other settings than .*\(overlap 0\.5\); 'maskmed-zoo evaluate"):
        zoo.postprocess(run)
    changed(run, 0, {"overlap": 0.5})
    zoo.postprocess(run)
