"""Plans and checkpoints of nnU-Net v2: the same network here, with the same output; and trainers written for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskmed_zoo as zoo
from maskmed_zoo.build import model_of
from maskmed_zoo.errors import CheckpointError, DataError, JointError, OutputError, RecipeError
from maskmed_zoo.interop.nnunet_install import install, trainer_name
from maskmed_zoo.interop.nnunet_network import GroupSchedule, PluginNetwork
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.recipe.nnunet_plan import read_configuration, recipe_of_plan
from maskmed_zoo.runner.optimizer import build_optimizer, build_schedule
from tests.interop.plans import DATASET, configuration, network

IMAGE = (2, 2, 8, 32, 16)


def checkpoint(weights: dict[str, torch.Tensor], path: Path) -> Path:
    """What nnU-Net's trainer saves: weights, and logs made of numpy's numbers."""
    logs = {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(1)]}
    arguments = {"plans": {}, "fold": 0, "device": torch.device("cpu")}
    torch.save(
        {"network_weights": weights, "logging": logs, "_best_ema": np.float64(0.1), "init_args": arguments}, path
    )
    return path


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_a_checkpoint_in_the_pointwise_twin_gives_nnunets_output(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plan = configuration(kind)
    theirs = network(plan, 2, 3)
    path = checkpoint(theirs.state_dict(), tmp_path / "checkpoint_final.pth")
    model = zoo.create(recipe_of_plan("maskmed_amos", plan, dataset=DATASET, twin=True), pretrained=path).eval()
    image = torch.randn(IMAGE)
    with torch.no_grad():
        expected, stages = theirs(image), model(image).stages
    assert len(expected) == len(stages) == 3
    for reference, stage in zip(expected, stages, strict=True):
        torch.testing.assert_close(stage.logits, reference, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_under_another_head(tmp_path: Path) -> None:
    """Encoder and decoder come from nnU-Net, the head stays fresh, and the report says so."""
    plan = configuration()
    theirs = network(plan, 2, 3)
    path = checkpoint(theirs.state_dict(), tmp_path / "checkpoint_best.pth")
    recipe = recipe_of_plan("maskmed_amos", plan, dataset=DATASET)
    with pytest.raises(CheckpointError, match="missing"):
        zoo.create(recipe, pretrained=path)
    model = zoo.create(recipe)
    report = zoo.load_weights(model, path, strict=False, minimum=0)
    assert {name.split(".")[0] for name in report.loaded} == {"encoder", "decoder"}
    assert {name.split(".")[0] for name in report.missing} == {"neck", "head"}
    assert {name.split(".")[0] for name in report.unexpected} == {"head"}
    parts = model.encoder, model.decoder
    assert sum(len(part.state_dict()) for part in parts) == len(report.loaded)


def test_our_trainers_checkpoints_load_too(tmp_path: Path) -> None:
    recipe = recipe_of_plan("maskmed_hippocampus_cpu", configuration(), dataset=DATASET)
    wrapped = PluginNetwork(model_of(recipe), deep_supervision=False)
    path = checkpoint(wrapped.state_dict(), tmp_path / "checkpoint_final.pth")
    model = zoo.create(recipe, pretrained=path)
    image = torch.randn(IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().predict(image), wrapped.eval()(image))


def test_what_comes_from_the_plan_and_what_from_the_recipe() -> None:
    recipe = recipe_of_plan("maskmed_hippocampus_cpu", configuration(), dataset=DATASET)
    own = load_recipe("maskmed_hippocampus_cpu")
    for part in ("neck", "head", "loss"):
        assert getattr(recipe.model, part) == getattr(own.model, part)
    assert recipe.train == own.train.model_copy(update={"batch_size": 3})
    assert recipe.data.channels == ("CT", "PET")
    assert recipe.data.labels == DATASET["labels"]
    assert (recipe.data.spacing, recipe.data.patch_size) == ((3, 1, 1), (8, 32, 16))
    cascade = recipe_of_plan("maskmed_amos", configuration() | {"previous_stage": "3d_lowres"}, dataset=DATASET)
    assert cascade.data.channels == ("CT", "PET", "previous left", "previous right")


def changed(**arguments: object) -> dict[str, Any]:
    plan = configuration()
    plan["architecture"]["arch_kwargs"] |= arguments
    return plan


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "2-D": (lambda: configuration() | {"patch_size": [32, 16]}, "2-D"),
    "other network": (lambda: configuration("PrimusS"), "'PrimusS', expected PlainConvUNet or ResidualEncoderUNet"),
    "old plan": (lambda: {k: v for k, v in configuration().items() if k != "architecture"}, "plan anew"),
    "dropout": (lambda: changed(dropout_op="torch.nn.Dropout3d"), "dropout_op torch.nn.Dropout3d, expected None"),
    "batch norm": (lambda: changed(norm_op="torch.nn.BatchNorm3d"), "expected InstanceNorm3d"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_plans(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(JointError) as caught:
        recipe_of_plan("maskmed_amos", make())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refused_labels() -> None:
    regions = DATASET | {"labels": {"background": 0, "whole": [1, 2], "core": 2}}
    with pytest.raises(DataError, match="'whole' is a region"):
        recipe_of_plan("maskmed_amos", configuration(), dataset=regions)
    ignore = DATASET | {"labels": {"background": 0, "left": 1, "ignore": 2}}
    assert recipe_of_plan("maskmed_amos", configuration(), dataset=ignore).data.num_classes == 2


def test_a_configuration_inherits(tmp_path: Path) -> None:
    path = tmp_path / "plans.json"
    low = {"inherits_from": "3d_fullres", "spacing": [4, 2, 2]}
    path.write_text(json.dumps({"configurations": {"3d_fullres": configuration(), "3d_lowres": low}}))
    assert read_configuration(path, "3d_fullres") == configuration()
    assert read_configuration(path, "3d_lowres")["spacing"] == [4, 2, 2]
    assert read_configuration(path, "3d_lowres")["architecture"] == configuration()["architecture"]
    for text in (path.read_text(), "[]", "{}"):
        path.write_text(text)
        with pytest.raises(DataError, match="no configuration '2d'"):
            read_configuration(path, "2d")
    path.write_text("{")
    with pytest.raises(DataError, match=r"plans\.json:1:2: invalid JSON"):
        read_configuration(path, "2d")


@pytest.mark.parametrize("key", ["spacing", "patch_size", "batch_size", "architecture"])
@pytest.mark.parametrize("value", [None, -3, "x", {}, [None], float("nan")])
def test_what_is_no_configuration_is_refused(key: str, value: Any) -> None:
    with pytest.raises((JointError, RecipeError)) as caught:
        recipe_of_plan("maskmed_amos", configuration() | {key: value}, dataset=DATASET)
    assert str(caught.value)


def test_the_network_as_nnunet_calls_it() -> None:
    recipe = recipe_of_plan("maskmed_hippocampus_cpu", configuration(), dataset=DATASET)
    model = model_of(recipe).eval()
    wrapped = PluginNetwork(model, deep_supervision=True).eval()
    image = torch.randn(IMAGE)
    with torch.no_grad():
        every = wrapped(image)
        assert [tuple(x.shape[2:]) for x in every] == [(8, 32, 16), (8, 16, 8), (4, 8, 4)]
        assert len(wrapped(image, for_loss=True).stages) == 3
        wrapped.deep_supervision = False
        final = wrapped(image)
        assert len(wrapped(image, for_loss=True).stages) == 1
        torch.testing.assert_close(final, every[0])
        torch.testing.assert_close(final.softmax(1), final.exp())  # nnU-Net's softmax changes nothing
        torch.testing.assert_close(final, model.predict(image))


def test_rates_are_those_of_our_own_schedule_after_any_restart() -> None:
    recipe = load_recipe("maskmed_hippocampus_cpu", {"train.epochs": 4, "train.iterations_per_epoch": 30})
    model = model_of(recipe)
    first = build_optimizer(model, recipe.train.optimizer)
    expected = []
    schedule = build_schedule(first, recipe.train)
    for _ in range(120):
        expected.append([group["lr"] for group in first.param_groups])
        first.step()
        schedule.step()
    for begin in (0, 2):
        optimizer = build_optimizer(model, recipe.train.optimizer)
        ours = GroupSchedule(optimizer, recipe.train, per_epoch=30, total=120)
        if begin:
            optimizer.load_state_dict(first.state_dict())  # rates near zero, which must not become the base
        found = []
        for epoch in range(begin, 4):
            ours.step(epoch)
            for _ in range(30):
                found.append([group["lr"] for group in optimizer.param_groups])
                ours.advance()
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected[30 * begin :]))
    assert max(row[1] / row[0] for row in expected) == pytest.approx(0.3)


def test_a_trainer_is_written_once(tmp_path: Path) -> None:
    recipe = load_recipe("pointwise_amos")
    assert trainer_name(None) == "nnUNetTrainer_MaskMed"
    assert trainer_name(recipe.model_copy(update={"name": "a.b-c"})) == "nnUNetTrainer_MaskMed_a_b_c"
    name = trainer_name(recipe)
    file = install(tmp_path / "trainers", name, recipe)
    assert file.name == "nnUNetTrainer_MaskMed_pointwise_amos.py"
    assert load_recipe(file.with_suffix(".yaml")) == recipe
    assert install(tmp_path / "trainers", name, recipe) == file
    with pytest.raises(OutputError, match="exists with other content"):
        install(tmp_path / "trainers", name, load_recipe("pointwise_amos", {"train.epochs": 3}))
    assert load_recipe(file.with_suffix(".yaml")) == recipe
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made a folder"):
        install(tmp_path / "file" / "x", name, recipe)
