"""A batch divided among processes and into pieces: the training of one process with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskmed_zoo import registry
from maskmed_zoo.contracts import Loss
from maskmed_zoo.errors import JointError, RecipeError
from maskmed_zoo.losses.ce_dice import CEDiceLoss
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner import divided
from maskmed_zoo.runner.metrics_file import read_rows
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.trainer import Trainer
from tests.conftest import TINY, make_dataset
from tests.runner import two_processes as two

CASES = two.cases()
ROOT = Path(__file__).resolve().parents[2]
EXACT, ROUNDED = 1e-9, 0.03
"""Of gradients in float64, and of the way that the weights went in sixty steps in float32."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the tiny recipe and a data set of two cases to validate on."""
    path = tmp_path_factory.mktemp("two")
    (path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    make_dataset(path / "Dataset001_Boxes", cases=8)
    return path


@pytest.fixture(scope="module")
def printed(folder: Path) -> subprocess.CompletedProcess[str]:
    """What two processes have printed that are through with `two_processes`."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*launch, "-m", "tests.runner.two_processes", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def together(folder: Path, printed: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What the two processes found."""
    del printed
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())


def test_gradients_are_those_of_the_whole_batch(folder: Path, together: list[dict[str, Any]]) -> None:
    """1 x 4 = 2 x 2 = accumulation 2 x 2 = 2 x 2 x 1 in float64, though a mean over halves is something else."""
    naive: dict[str, float] = {}
    for case in CASES:
        batch, trainer = two.batch_of(case[2]), two.trainer_of(folder, *case)
        values, whole = two.gradients(trainer, batch)
        assert whole.norm() > 0.1
        divisions = [two.gradients(two.trainer_of(folder, *case, 2), batch)]
        divisions += [found[str((*case, pieces))] for pieces in (1, 2) for found in together]
        assert len(divisions) == 5
        for parts, gradients in divisions:
            assert difference(whole, gradients) < EXACT, case
            assert parts == pytest.approx(values, rel=EXACT), case
        if case[:2] in {("pointwise", "ce_dice"), ("masked_query", "once")}:
            halves = [{name: tensor[half] for name, tensor in batch.items()} for half in (slice(2), slice(2, 4))]
            means = torch.stack([two.gradients(trainer, half)[1] for half in halves]).mean(0)
            naive[f"{case[1]} {case[2]}"] = difference(whole, means)
    assert {head for head, _, _ in CASES} == {*registry.names("head")}
    assert {two.LOSSES[gives][name].split("kind: ")[1].split(",")[0].rstrip("}") for gives in two.LOSSES
            for name in two.LOSSES[gives]} == {*registry.names("loss")}  # fmt: skip
    assert len(CASES) >= 27
    alike = {"ce_dice plain", "ce_dice instances"}  # where every sample counts the same
    assert len(naive) == 8
    assert {name for name, off in naive.items() if off > 1e-3} == naive.keys() - alike


def test_sixty_steps_and_another_number_of_processes_on_the_way(folder: Path, together: list[dict[str, Any]]) -> None:
    """The weights deviate about as far as those of one process whose batches have their samples in another order."""
    first = two.weights(two.learner(folder))
    alone = two.weights(two.trained(two.learner(folder), range(60)))
    found = {
        "pieces": two.weights(two.trained(two.learner(folder, accumulate=2), range(60))),
        "order": two.weights(two.trained(two.learner(folder), range(60), backwards=True)),
    }
    found |= {name: together[0][name] for name in ("60", "2-1-2")}
    far = {name: difference(alone - first, weights - first) for name, weights in found.items()}
    order = far.pop("order")
    assert 0 < order < ROUNDED
    assert max(far.values()) < 4 * order
    assert all(torch.equal(*(t[name] for t in together)) for name in ("60", "2-1-2"))


def test_a_step_that_is_not_finite_in_one_process_is_skipped_by_both(together: list[dict[str, Any]]) -> None:
    (values, said, is_same), other = (found["skipped"] for found in together)
    assert values == other[0] == {}
    assert said == other[1]
    assert said.startswith("step 0: matching cost or loss is not finite: NaN or infinity in masks of stage 0")
    assert is_same
    assert other[2]


def test_validation_counts_the_patches_of_all_processes(folder: Path, together: list[dict[str, Any]]) -> None:
    batches: Any = [two.batch_of("plain", step) | {"annotated": torch.ones(4, 3).bool()} for step in range(3)]
    assert together[0]["dice"] == together[1]["dice"] == two.learner(folder).validate(batches).dice > 0


def test_both_end_early_after_the_same_epoch(folder: Path, together: list[dict[str, Any]]) -> None:
    assert together[0]["early"] == together[1]["early"] == ["epoch 1", "epoch 2", "epoch 3", 0, 0]
    run = RunFolder(folder / "early")
    assert run.whole(8) == 3
    assert json.loads(run.evaluation_file.read_text(encoding="utf-8"))["epochs"] == 3


def test_a_run_of_two_processes_is_that_of_one(folder: Path, together: list[dict[str, Any]], printed: Any) -> None:
    assert two.command(folder, "alone") == 0
    runs = [RunFolder(folder / name) for name in ("alone", "together")]
    alone, both = (read_rows(run.metrics_file, 3) for run in runs)
    assert len(alone) == len(both) == 2
    for row, other in zip(alone, both, strict=True):
        for name in ("loss", "class", "bce", "dice", "gradient_norm", "lr_cnn"):
            assert float(other[name]) == pytest.approx(float(row[name]), rel=1e-4), name
        assert float(other["validation_dice"]) == pytest.approx(float(row["validation_dice"]), abs=0.01)
    scores = [json.loads(run.evaluation_file.read_text(encoding="utf-8")) for run in runs]
    names = [[case["case"] for case in score["cases"]] for score in scores]
    assert len(names[0]) == 2
    assert names[0] == names[1]
    assert printed.stdout.count("mean over cases") == 3  # of "together", and of "early" before and after it is resumed
    assert printed.stderr.count("epoch 2/2") == 1
    assert printed.stderr.count("already holds a run") == 1
    assert [found["train"] for found in together] == [0, 0]
    assert [found["refused"] for found in together] == [2, "silent 1"]
    assert [found["words"] for found in together] == [([0, 1], 0)] * 2


def test_a_batch_that_cannot_be_divided_is_refused(tiny_recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"2 patches cannot be divided among 1 processes x train\.accumulate 4 = 4"):
        Trainer(load_recipe(tiny_recipe, ["train.accumulate=4"]), two.CPU)


def test_a_loss_or_a_network_that_cannot_be_divided_is_refused(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(tiny_recipe, ["train.accumulate=2", "model.head.kind=pointwise", "model.loss.kind=ce_dice"])
    trainer = Trainer(recipe, two.CPU)
    trainer.model.neck.add_module("norm", nn.BatchNorm3d(4))
    with pytest.raises(JointError, match=r"has batch norm \('neck.norm'\).*without it"):
        divided.check_divisible(recipe, trainer.model, trainer.loss)
    trainer.model.freeze(["neck"])  # then it does not depend on the batch
    divided.check_divisible(recipe, trainer.model, trainer.loss)
    monkeypatch.setattr(CEDiceLoss, "counts", Loss.counts)
    with pytest.raises(JointError, match="loss 'ce_dice' does not say what it divides by"):
        Trainer(recipe, two.CPU)
    assert Trainer(load_recipe(recipe, {"train.accumulate": 1}), two.CPU).step(
        torch.randn(2, 1, 8, 16, 16), torch.ones(2, 8, 16, 16).long()
    )


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "maskmed_zoo"]


def test_a_command_of_one_process_is_refused_in_one_line(tmp_path: Path) -> None:
    command = [*LAUNCH, "train", "maskmed_phantom", "--data", "DATA", "--out", "OUT", "--folds", "0-1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode != 0
    assert sum(line.startswith("torchrun lets several processes") for line in done.stderr.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []


def test_predict_divides_the_cases_and_tells_once_what_is_wrong(tmp_path: Path) -> None:
    """Each process has a case that cannot be read, and one tells of both when all others are done."""
    images = make_dataset(tmp_path / "data", cases=6) / "imagesTr"
    for number in (1, 2):
        (images / f"case_0{number}_0000.nii.gz").write_bytes(b"damaged")
    words = ["predict", str(ROOT / "tests" / "runner" / "earlier_run"), str(images), "out", "--device", "cpu"]
    done = subprocess.run(
        [*LAUNCH, *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=3000, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "case_0" in line or "cannot be used" in line]
    assert ["01" in lines[0], "02" in lines[0]].count(True) == ["01" in lines[1], "02" in lines[1]].count(True) == 1
    assert lines[2:] == ["2 of 6 cases cannot be used; the others are in out"]
    assert done.stderr.count("trained on images prepared as by an earlier version") == 1
    assert sorted(path.name for path in (tmp_path / "out").glob("*")) == [
        ".maskmed_predictions.json", *(f"case_0{i}.nii.gz" for i in (0, 3, 4, 5))
    ]  # fmt: skip
