"""A run of an earlier version predicts what it predicted then, and settings added since make no stranger of it.

`earlier_run` was written by that version: 150 steps of a tiny MaskMed on made-up boxes (`tests.conftest`), and the
labels that it gave for the image below.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import yaml
from pydantic import create_model
from safetensors import safe_open

import maskmed_zoo as zoo
from maskmed_zoo import registry
from maskmed_zoo.data.preprocess import PREPROCESSING
from maskmed_zoo.errors import CheckpointError, RecipeError
from maskmed_zoo.export.export import export
from maskmed_zoo.necks import fsad
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.load import load
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.train import train

RUN = Path(__file__).parent / "earlier_run"


def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    array = rng.normal(0, 20, (1, 9, 18, 20)).astype(np.float32)
    array[0, 3:7, 5:11, 12:17] += 200
    array[0, 2:6, 6:12, 3:8] -= 200
    return array


def expected() -> np.ndarray:
    rows = (RUN / "expected_labels.txt").read_text().split()
    return np.array([[int(value) for value in row] for row in rows]).reshape(9, 18, 20)


def check(run: Path) -> None:
    labels = zoo.load(run, device="cpu").segment(image(), spacing=(2.0, 1.0, 1.0)).labels
    assert (labels == expected()).mean() > 0.999
    assert np.bincount(labels.ravel()).tolist() == pytest.approx([3000, 120, 120], abs=4)


def test_predicts_the_same_labels(caplog: pytest.LogCaptureFixture) -> None:
    check(RUN)
    assert np.bincount(expected().ravel()).tolist() == [3000, 120, 120]
    with safe_open(RUN / "weights_last.safetensors", framework="pt") as file:
        assert len(file.metadata()["network"]) == 64, "the fixture is no longer of that version"


def test_is_exported_with_a_header_of_today(tmp_path: Path) -> None:
    export(RunFolder(RUN), tmp_path / "out", license="MIT")
    check(tmp_path / "out")
    with pytest.raises(CheckpointError, match="the last weights of a run were exported here, not the best"):
        zoo.load(tmp_path / "out", weights="best")
    assert "marginalize" in (tmp_path / "out" / "recipe.yaml").read_text()
    with safe_open(tmp_path / "out" / "weights.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["network"])["model"]["neck"]["kind"] == "fsad"


def test_says_that_images_are_prepared_otherwise_since(
    caplog: pytest.LogCaptureFixture, dataset: Path, tmp_path: Path
) -> None:
    """In its run and exported; and is not trained on with others than those it began with."""
    export(RunFolder(RUN), tmp_path / "out", license="MIT")
    for folder in (RUN, tmp_path / "out"):
        caplog.clear()
        load(folder, device="cpu")
        assert [m for m in caplog.messages if "prepared as by an earlier version" in m]
    recipe = load_recipe(RUN / "recipe.yaml", ["train.epochs=1", "train.iterations_per_epoch=1"])
    run = train(recipe, data=dataset, out=tmp_path / "run", device="cpu")
    caplog.clear()
    load(run, device="cpu")
    assert not caplog.messages
    manifest = json.loads(run.manifest_file.read_text())
    assert manifest.pop("preprocessing") == PREPROCESSING
    run.manifest_file.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="prepared as by an earlier version, and would be others from here on"):
        train(recipe, data=dataset, out=run.path, device="cpu", resume=True)


def test_its_recipe_and_weights_make_its_network() -> None:
    model = zoo.create(str(RUN / "recipe.yaml"), pretrained=RUN)
    with safe_open(RUN / "weights_last.safetensors", framework="pt") as file:
        name = "head.classifiers.0.0.weight"
        assert model.state_dict()[name].equal(file.get_tensor(name))
    with pytest.raises(RecipeError, match=r"is a run or an exported folder.*zoo\.load\('.*zoo\.create\('.*pretrained="):
        zoo.create(str(RUN))


def test_weights_beside_another_recipe_are_refused(tmp_path: Path) -> None:
    shutil.copytree(RUN, tmp_path / "run")
    file = tmp_path / "run" / "recipe.yaml"
    file.write_text(file.read_text().replace("points: 1", "points: 2"))
    with pytest.raises(CheckpointError, match="weights of another recipe"):
        load(tmp_path / "run", device="cpu")


@pytest.fixture
def wider(monkeypatch: pytest.MonkeyPatch) -> None:
    """The neck's settings as a later version may have them: one more, whose default changes nothing."""
    config = create_model("FSADConfig", __base__=fsad.FSADConfig, kind=(Literal["fsad"], "fsad"), extra=(bool, False))
    monkeypatch.setattr(fsad.FSADNeck, "Config", config)
    assert "extra" in registry.component("fsad", "neck").Config.model_fields


def test_a_setting_added_since_changes_nothing(wider: None) -> None:
    check(RUN)


def test_nor_for_weights_of_today(
    tiny_recipe: Path, dataset: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Trained before the setting: predicts, evaluates, resumes, is exported; with another value it is refused."""
    quick = ["train.epochs=1", "train.iterations_per_epoch=1"]
    run = train(load_recipe(tiny_recipe, quick), data=dataset, out=tmp_path / "run", device="cpu")
    before = run.weights_file("last").read_bytes()
    request.getfixturevalue("wider")
    assert "extra" not in run.recipe_file.read_text()
    zoo.evaluate(run.path, device="cpu")
    train(load_recipe(run.recipe_file), data=dataset, out=run.path, device="cpu", resume=True)
    export(run, tmp_path / "out", license="MIT")
    assert (tmp_path / "out" / "weights.safetensors").read_bytes() == before
    zoo.load(tmp_path / "out", device="cpu")
    content = yaml.safe_load(run.recipe_file.read_text())
    content["model"]["neck"]["extra"] = True
    run.recipe_file.write_text(yaml.safe_dump(content))
    with pytest.raises(CheckpointError, match=r"weights of another recipe.*model\.neck\.extra was False, now True"):
        load(run, device="cpu")


def test_a_network_section_that_cannot_be_read(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    quick = ["train.epochs=1", "train.iterations_per_epoch=1"]
    run = train(load_recipe(tiny_recipe, quick), data=dataset, out=tmp_path / "run", device="cpu")
    file = run.weights_file("last")
    tensors = load_file(file)
    for network in ("{", "{}", '{"model": [], "data": {}}', "", "0" * 64, '{"model": {"encoder": {"kind": "none"}}}'):
        save_file(tensors, file, {"network": network, "recipe": "tiny"})
        with pytest.raises(CheckpointError, match="weights of another recipe") as caught:
            load(run, device="cpu")
        assert "\n" not in str(caught.value)


def test_old_words_are_reported_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    shutil.copy(RUN / "recipe.yaml", tmp_path / "old.yaml")
    with caplog.at_level(logging.WARNING):
        load_recipe(tmp_path / "old.yaml")
        load_recipe(tmp_path / "old.yaml")
    assert len([m for m in caplog.messages if "'marginalise' is now 'marginalize'" in m]) == 1
