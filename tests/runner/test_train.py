"""Training end to end on a tiny data set: what a run holds, that it learns, resumes and refuses."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskmed_zoo.data.formats import read_labels
from maskmed_zoo.errors import CheckpointError, DataError, JointError, NonFiniteError
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.evaluate import evaluate
from maskmed_zoo.runner.optimizer import build_optimizer, build_schedule
from maskmed_zoo.runner.predict import predict
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.train import train
from maskmed_zoo.runner.trainer import Trainer

CPU = torch.device("cpu")


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.weights_file("last"))


def metrics(run: RunFolder) -> list[dict[str, str]]:
    with run.metrics_file.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_holds_what_it_promises(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    run = train(load_recipe(tiny_recipe), data=dataset, out=tmp_path / "run", device="cpu")
    evaluate(run, device="cpu")
    assert {path.name for path in run.path.iterdir()} == {
        "recipe.yaml",
        "manifest.json",
        "metrics.csv",
        "weights_best.safetensors",
        "weights_last.safetensors",
        "state_last.pt",
        "state_previous.pt",
        "evaluation.csv",
        "evaluation.json",
        "evaluation.png",
        "predictions",
    }
    assert len({path.stat().st_mode for path in run.path.iterdir() if path.is_file()}) == 1, "read by the same people"
    rows = metrics(run)
    assert [row["iterations"] for row in rows] == ["3", "6"]
    assert {"loss", "class", "bce", "dice", "gradient_norm", "lr_cnn", "lr_transformer", "validation_dice"} <= rows[
        0
    ].keys()
    assert torch.load(run.state_file, weights_only=True)["iteration"] == 6
    manifest = json.loads(run.manifest_file.read_text())
    assert len(manifest["training"]) == 3
    assert len(manifest["validation"]) == 1
    assert manifest["environment"]["torch"] == torch.__version__
    scores = json.loads(run.evaluation_file.read_text())
    assert scores["labels"].keys() == {"left", "right"}
    (case,) = manifest["validation"]
    predicted = read_labels(run.predictions / f"{case}.nii.gz")
    reference = read_labels(dataset / "labelsTr" / f"{case}.nii.gz")
    assert predicted.array.shape == reference.array.shape
    np.testing.assert_array_equal(predicted.geometry.affine, reference.geometry.affine)


@pytest.mark.parametrize("swap", [[], ["model.head.kind=pointwise", "model.loss.kind=ce_dice"]], ids=["query", "point"])
def test_both_heads_learn(swap: list[str], tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    overrides = ["train.epochs=1", "train.iterations_per_epoch=80", "model.encoder.channels=[8, 8, 16]"]
    overrides += ["data.augmentation={kind: light, spatial_probability: 0, intensity_probability: 0}"]
    overrides += ["train.optimizer.lr=1e-2", "train.optimizer.transformer_scale=1", *swap]
    run = train(load_recipe(tiny_recipe, overrides), data=dataset, out=tmp_path / "run", device="cpu")
    assert evaluate(run, device="cpu")["mean_dice"] > 0.8


def test_seed_decides(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    runs = [
        train(load_recipe(tiny_recipe, [f"train.seed={seed}"]), data=dataset, out=tmp_path / name, device="cpu")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    a, b, c = (weights(run)["encoder.levels.0.0.conv.weight"] for run in runs)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_workers_change_nothing(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe, ["train.epochs=1"])
    alone = train(recipe, data=dataset, out=tmp_path / "alone", device="cpu", workers=0)
    helped = train(recipe, data=dataset, out=tmp_path / "helped", device="cpu", workers=1)
    assert metrics(alone)[0]["loss"] == metrics(helped)[0]["loss"]


def test_groups_and_schedule_scale_each_group_by_its_own_rate(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, ["train.optimizer.warmup_iterations=0"])
    trainer = Trainer(recipe, CPU)
    total = recipe.train.iterations
    for iteration in range(total):
        decay = (1 - iteration / total) ** 0.9
        assert trainer.rates() == pytest.approx({"lr_cnn": 3e-3 * decay, "lr_transformer": 0.9e-3 * decay})
        trainer.optimizer.step()
        trainer.schedule.step()
    sgd = load_recipe("maskmed_amos")
    optimizer = build_optimizer(trainer.model, sgd.train.optimizer)
    build_schedule(optimizer, sgd.train)
    assert isinstance(optimizer, torch.optim.SGD)
    assert {g["name"]: (g["lr"], g["momentum"], g["nesterov"], g["weight_decay"]) for g in optimizer.param_groups} == {
        "cnn": (1e-3, 0.99, True, 3e-5),
        "transformer": (pytest.approx(1e-4), 0.99, True, 3e-5),
    }


def test_gradient_is_clipped(tiny_recipe: Path) -> None:
    trainer = Trainer(load_recipe(tiny_recipe, ["train.optimizer.gradient_clip=0.01"]), CPU)
    trainer.step(torch.randn(2, 1, 8, 16, 16), torch.randint(0, 3, (2, 8, 16, 16)))
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-2)


def test_divergence_is_told_skipped_and_fails_after_so_many_steps_in_a_row(tiny_recipe: Path) -> None:
    told: list[str] = []
    trainer = Trainer(load_recipe(tiny_recipe, ["train.max_skipped_steps=2"]), CPU, told.append)
    labels, image = torch.randint(0, 3, (2, 8, 16, 16)), torch.randn(2, 1, 8, 16, 16)
    broken = torch.full_like(image, torch.nan)
    assert trainer.step(image, labels)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    assert trainer.step(broken, labels) == trainer.step(broken, labels) == {}
    assert len(told) == 2
    assert re.search(r"^step 1: .*matching cost.* not finite.*; step skipped$", told[0])
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())
    assert trainer.step(image, labels)  # and the count starts anew
    for _ in range(2):
        trainer.step(broken, labels)
    with pytest.raises(NonFiniteError, match=r"step 6: .*matching cost.*; 3 such steps in a row"):
        trainer.step(broken, labels)


def test_refusals(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe, ["train.epochs=1", "train.iterations_per_epoch=1"])
    run = train(recipe, data=dataset, out=tmp_path / "run", device="cpu")
    with pytest.raises(CheckpointError, match="already holds a run; add --resume"):
        train(recipe, data=dataset, out=run.path, device="cpu")
    other = load_recipe(recipe, {"train.optimizer.lr": 1})
    with pytest.raises(CheckpointError, match=r"another recipe: train\.optimizer\.lr was 0\.003, now 1"):
        train(other, data=dataset, out=run.path, device="cpu", resume=True)
    train(load_recipe(recipe, {"evaluation.tolerance": 0.5}), data=dataset, out=run.path, device="cpu", resume=True)
    assert run.recipe().evaluation.tolerance == 0.5
    with pytest.raises(CheckpointError, match="the run is on fold 0, not 1"):
        train(recipe, data=dataset, out=run.path, device="cpu", fold=1, resume=True)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(recipe, data=dataset, out=tmp_path / "none", device="cpu", resume=True)
    with pytest.raises(CheckpointError, match="exists and is no run"):
        train(recipe, data=dataset, out=dataset, device="cpu")
    with pytest.raises(DataError, match=r"data\.labels"):
        train(load_recipe(recipe, {"data.labels": {"background": 0, "liver": 1}}), data=dataset, out=tmp_path / "x")
    with pytest.raises(JointError, match="nearest valid sizes"):
        train(load_recipe(recipe, {"data.patch_size": [8, 18, 16]}), data=dataset, out=tmp_path / "y", device="cpu")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()
    for path in (run.state_file, run.previous_state_file):
        path.write_bytes(run.state_file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be continued from"):
        train(recipe, data=dataset, out=run.path, device="cpu", resume=True)


def test_weights_of_another_recipe_or_cut_off_are_refused(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    quick = ["train.epochs=1", "train.iterations_per_epoch=1"]
    one = train(load_recipe(tiny_recipe, quick), data=dataset, out=tmp_path / "one", device="cpu")
    wide = load_recipe(tiny_recipe, [*quick, "model.head.masked_attention=off"])
    two = train(wide, data=dataset, out=tmp_path / "two", device="cpu")
    image = dataset / "imagesTr" / "case_00_0000.nii.gz"
    one.weights_file("last").write_bytes(two.weights_file("last").read_bytes())
    with pytest.raises(CheckpointError, match="weights of another recipe"):
        predict(one, [image], tmp_path / "out", device="cpu")
    two.weights_file("last").write_bytes(two.weights_file("last").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        predict(two, [image], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_labels_can_come_from_the_data_set(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe, ["data.labels=null", "data.channels=null", "train.epochs=1"])
    run = train(recipe, data=dataset, out=tmp_path / "run", device="cpu")
    assert run.recipe().data.labels == {"background": 0, "left": 1, "right": 2}
    assert run.recipe().data.channels == ("CT",)


def test_left_right_pairs_of_the_data_set_are_not_mirrored(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe, {"data.labels": None, "data.mirror_axes": ["x"]})
    with pytest.raises(DataError, match="'left' and 'right' are a left/right pair"):
        train(recipe, data=dataset, out=tmp_path / "run", device="cpu")


def test_resume_refuses_another_split(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe, ["train.epochs=1", "train.iterations_per_epoch=1"])
    train(recipe, data=dataset, out=tmp_path / "run", device="cpu")
    split = [{"train": ["case_00", "case_01"], "val": ["case_02", "case_03"]}]
    (dataset / "splits_final.json").write_text(json.dumps(split))
    with pytest.raises(CheckpointError, match="on training cases that are now others"):
        train(recipe, data=dataset, out=tmp_path / "run", device="cpu", resume=True)


def test_best_is_the_newest_where_nothing_is_validated(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe, ["train.validation_iterations=0"])
    run = train(recipe, data=dataset, out=tmp_path / "run", device="cpu")
    best = load_file(run.weights_file("best"))
    assert all(torch.equal(best[name], tensor) for name, tensor in weights(run).items())


def test_two_channels_and_an_ignore_label_end_to_end(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    for path in sorted((dataset / "imagesTr").glob("*_0000.nii.gz")):
        path.with_name(path.name.replace("_0000", "_0001")).write_bytes(path.read_bytes())
    for path in sorted((dataset / "labelsTr").glob("*.nii.gz")):
        stored = nib.load(path)
        labels = np.asarray(stored.dataobj).copy()
        labels[:, :, :2] = 3
        nib.save(nib.Nifti1Image(labels, stored.affine), path)
    description = json.loads((dataset / "dataset.json").read_text())
    description["labels"]["ignore"] = 3
    description["channel_names"]["1"] = "MRI"
    (dataset / "dataset.json").write_text(json.dumps(description))
    overrides = ["data.labels=null", "data.channels=null", "train.epochs=1"]
    run = train(load_recipe(tiny_recipe, overrides), data=dataset, out=tmp_path / "run", device="cpu")
    scores = evaluate(run, device="cpu")
    assert scores["labels"].keys() == {"left", "right"}
    assert run.recipe().data.channels == ("CT", "MRI")
    (case,) = run.manifest()["validation"]
    assert set(np.unique(read_labels(run.predictions / f"{case}.nii.gz").array)) <= {0, 1, 2}


def test_a_bad_case_in_a_loader_process_is_one_line(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe, ["train.epochs=1", "train.iterations_per_epoch=1"])
    train(recipe, data=dataset, out=tmp_path / "run", device="cpu")
    for path in (tmp_path / ".maskmed_cache").glob("*/*/image.npy"):
        content = path.read_bytes()
        path.write_bytes(b"x" * len(content))
    with pytest.raises(DataError, match="damaged cache entry") as caught:
        train(recipe, data=dataset, out=tmp_path / "new", device="cpu", workers=1)
    assert "\n" not in str(caught.value)


def test_a_diverged_loss_stops_float16_too(tiny_recipe: Path) -> None:
    overrides = ["model.head.kind=pointwise", "model.loss.kind=ce_dice", "train.max_skipped_steps=0"]
    trainer = Trainer(load_recipe(tiny_recipe, overrides), CPU)
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=True)
    with pytest.raises(NonFiniteError, match="step 0: loss is nan"):
        trainer.step(torch.full((2, 1, 8, 16, 16), torch.nan), torch.randint(0, 3, (2, 8, 16, 16)))
