"""Which folders of nnU-Net's results are predicted with, what of them is taken, and what is refused in one line."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import main
from maskmed_zoo.errors import ArgumentError, CheckpointError
from maskmed_zoo.inference.nnunet import NNUNetPredictor
from maskmed_zoo.runner.nnunet_folder import trained_at
from tests.conftest import write_nifti
from tests.interop.plans import DATASET
from tests.interop.results import NAME, plans, random_weights, write_results


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = plans()
    root = tmp_path_factory.mktemp("Dataset001_Boxes")
    return write_results(root, plan, {str(fold): random_weights(plan, fold) for fold in (0, 1, 10)})


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "Dataset001_Boxes" / NAME))


def loaded(path: Path, **keywords: Any) -> NNUNetPredictor:
    found = zoo.load(path, device="cpu", **keywords)
    assert isinstance(found, NNUNetPredictor)
    return found


def refused(path: Path, **keywords: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        zoo.load(path, device="cpu", **keywords)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.parent) in message
    return message


def test_a_model_stands_for_its_folds_and_a_data_set_for_its_model(folder: Path, monkeypatch: Any) -> None:
    ours = loaded(folder)
    assert len(ours.models) == 3
    assert ours.channels == ("CT", "PET")
    assert ours.labels == DATASET["labels"]
    assert ours.way.mirror_axes == ours.mirror_axes == (0, 1, 2)
    assert ours.recipe.data.normalization == ("ct", "zscore")
    assert [stats.mean for stats in ours.fingerprint][:1] == [40.0]
    assert loaded(folder.parent).weights_sha256 == ours.weights_sha256
    fold = loaded(folder / "fold_10")
    assert len(fold.models) == 1
    assert fold.weights_sha256 != ours.weights_sha256
    expected = torch.load(folder / "fold_10" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    for name, tensor in fold.model.state_dict().items():
        assert torch.equal(tensor, expected[name])
    monkeypatch.chdir(folder)
    assert loaded(Path("fold_10")).weights_sha256 == fold.weights_sha256
    shutil.copytree(folder, folder.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres"))
    assert "2 models that nnU-Net trained; give the folder of one: nnUNetTrainer__nnUNetPlans__3d" in refused(
        folder.parent
    )


def test_folds_that_are_not_finished_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    with caplog.at_level(logging.WARNING):
        assert len(loaded(folder).models) == 2
    assert "without fold_0, where there is no checkpoint_final.pth" in caplog.text
    assert len(loaded(folder, weights="best").models) == 1
    message = refused(folder / "fold_0")
    assert "no fold with checkpoint_final.pth; train one to its end, or take checkpoint_best.pth by --weights best" in (
        message
    )
    for fold in ("fold_1", "fold_10"):
        shutil.rmtree(folder / fold)
    assert "no fold with checkpoint_final.pth" in refused(folder)
    (folder / "fold_0").rename(folder / "fold_all")
    assert len(loaded(folder, weights="best").models) == 1
    assert trained_at(folder.parent / "nowhere") is None


def test_mirroring_is_a_setting(folder: Path) -> None:
    mirrored, plain = loaded(folder / "fold_0"), loaded(folder / "fold_0", inference__mirror=False)
    assert plain.mirror_axes == ()
    assert mirrored.weights_sha256 == plain.weights_sha256
    assert mirrored.settings != plain.settings
    plan = plans()
    write_results(folder.parent, plan, {"0": random_weights(plan)}, mirror_axes=None)
    never = loaded(folder / "fold_0")
    assert never.mirror_axes == ()
    assert never.settings == plain.settings
    with pytest.raises(ArgumentError, match=r"inference\.overlap: is nnU-Net's for a model that it trained; inference"):
        loaded(folder / "fold_0", inference__overlap=0.6)
    with pytest.raises(ArgumentError, match="nnU-Net's models average logits, and of their own folds alone"):
        zoo.load([folder / "fold_0", folder / "fold_0"])


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    rng = np.random.default_rng(0)
    for channel in range(2):
        array = rng.normal(50, 100, (16, 32, 8)).astype(np.float32)
        write_nifti(images / f"a_{channel:04d}.nii.gz", array, np.diag([1, 1, 3, 1]))
    words = ["predict", str(folder / "fold_0"), str(images), str(out), "--device", "cpu"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{out / 'a.nii.gz'}\n"
    assert main(words) == 0
    assert "1 finished before and skipped" in capsys.readouterr().err
    assert main([*words, "--set", "inference.mirror=false"]) == 2
    assert "made with other settings" in capsys.readouterr().err
    assert main([*words, "--set", "inference.mirror=false", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("explain", "a model that nnU-Net trained, which predicts but is not explained"),
        ("evaluate", "manifest.json: is"),
    ],
)
def test_other_commands_want_a_run(
    verb: str, words: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["a_0000.nii.gz", "--out", str(tmp_path / "out")] if verb == "explain" else []
    assert main([verb, str(folder / "fold_0"), *more, "--device", "cpu"]) == 2
    assert words in capsys.readouterr().err


def of_configuration(**changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plan: plan["configurations"]["3d_fullres"].update(changed)


NOT_ITK = {"image_reader_writer": "Tiff3DIO"}
LINEAR = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
PLANS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "2-D": (of_configuration(patch_size=[32, 16]), "the plan's configuration is 2-D; use a 3-D one"),
    "cascade": (
        of_configuration(previous_stage="3d_lowres"),
        "'3d_fullres' is a cascade, which needs the label maps of",
    ),
    "network": (
        lambda plan: plan["configurations"]["3d_fullres"]["architecture"].update(network_class_name="a.PrimusS"),
        "'PrimusS', expected PlainConvUNet or ResidualEncoderUNet",
    ),
    "old plan": (lambda plan: plan["configurations"]["3d_fullres"].pop("architecture"), "plan anew with nnU-Net 2.3"),
    "reader": (lambda plan: plan.update(NOT_ITK), "image_reader_writer is Tiff3DIO, expected SimpleITKIO or NibabelIO"),
    "scheme": (
        of_configuration(normalization_schemes=["CTNormalization", "MyNormalization"]),
        "normalization_schemes[1] is MyNormalization, expected CTNormalization or",
    ),
    "preprocessor": (of_configuration(preprocessor_name="Mine"), "preprocessor_name is Mine, expected DefaultPreproc"),
    "resampling": (
        of_configuration(resampling_fn_probabilities="resample_torch_fornnunet"),
        "resampling_fn_probabilities is resample_torch_fornnunet, expected resample_data_or_seg_to_shape; predict with",
    ),
    "order": (of_configuration(resampling_fn_data_kwargs=LINEAR), "resampling_fn_data_kwargs is {'is_seg': False"),
    "no statistics": (
        lambda plan: plan.pop("foreground_intensity_properties_per_channel"),
        "no whole plan of nnU-Net (KeyError: 'foreground_intensity_properties_per_channel')",
    ),
    "other configuration": (
        lambda plan: plan.update(configurations={"2d": {}}),
        "no configuration '3d_fullres' in an nnU-Net",
    ),
    "no plan": (lambda plan: plan.clear(), "no configuration '3d_fullres' in an nnU-Net plan"),
    "transpose": (lambda plan: plan.update(transpose_forward=[0, 0, 2]), "transpose_forward is [0, 0, 2], expected"),
}


@pytest.mark.parametrize("name", PLANS)
def test_plans_that_are_refused(name: str, folder: Path) -> None:
    change, words = PLANS[name]
    plan = plans()
    change(plan)
    (folder / "plans.json").write_text(json.dumps(plan))
    assert words in refused(folder)


def test_regions_are_refused(folder: Path) -> None:
    dataset = DATASET | {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    assert "'whole' is a region of several labels" in refused(folder)
    (folder / "dataset.json").unlink()
    assert "dataset.json" in refused(folder)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"init_args": {}}, "no checkpoint of nnU-Net's trainer (KeyError: 'configuration')"),
        ({"inference_allowed_mirroring_axes": (0, 3)}, "no checkpoint of nnU-Net's trainer (ValueError: inference_"),
        ({"inference_allowed_mirroring_axes": 1}, "no checkpoint of nnU-Net's trainer (TypeError"),
        ({"network_weights": {"a": torch.zeros(2)}}, "not the network of its plan"),
        ({"network_weights": {}}, "no tensors"),
    ],
)
def test_checkpoints_that_are_refused(changed: dict[str, Any], words: str, folder: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=False) | changed, file)
    assert words in refused(folder)


def test_folds_of_different_models_are_refused(folder: Path) -> None:
    plan = plans()
    write_results(folder.parent, plan, {"1": random_weights(plan)}, mirror_axes=(0,))
    assert "mirrors along other axes, than" in refused(folder)


def test_a_checkpoint_that_would_run_code_is_refused(folder: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=False) | {"logging": Path("x")}, file)
    assert "would run code when read" in refused(folder)
