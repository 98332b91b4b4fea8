"""Studies on a tiny data set: each fold once, interrupted ones continued, shared, failures kept apart, one score."""

from __future__ import annotations

import json
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch

import maskmed_zoo as zoo
from maskmed_zoo.arguments import parse_numbers
from maskmed_zoo.cli.main import main
from maskmed_zoo.data.formats import read_image, read_labels
from maskmed_zoo.errors import ArgumentError, CheckpointError, DataError, StoppedError, UserError, ZooError
from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.files import write_json
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.runner import jobs
from maskmed_zoo.runner.job import Job, Task, order
from maskmed_zoo.runner.job_process import work
from maskmed_zoo.runner.study import train_study
from maskmed_zoo.runner.study_scores import evaluate_study
from maskmed_zoo.runner.trainer import Trainer
from tests.conftest import TINY, make_dataset

QUICK = {"train.epochs": 1, "train.iterations_per_epoch": 1, "train.validation_iterations": 0}
SCORES = ("mean_dice", "mean_dice_over_labels", "over_cases", "labels", "absent", "missed", "false")


def in_this_process(patch: pytest.MonkeyPatch) -> list[int]:
    """Jobs are run in this process; the folds of those that were."""
    ran: list[int] = []

    def run(job: Job, task: Task, lock: IO[str]) -> str | None:
        ran.append(job.fold)
        try:
            work(json.loads(json.dumps(order(job, task))))
        except ZooError as error:
            return str(error)
        return None

    patch.setattr(jobs, "run_in_process", run)
    return ran


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return in_this_process(monkeypatch)


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe, QUICK)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of all four folds of a data set, trained for some steps; `data` lies beside it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    changes: dict[str, Any] = {"train.epochs": 1, "train.iterations_per_epoch": 40, "train.optimizer.lr": 1e-2}
    changes |= {"model.head.kind": "pointwise", "model.loss.kind": "ce_dice", "model.neck.kind": "skip"}
    changes["data.augmentation"] = {"kind": "light", "spatial_probability": 0, "intensity_probability": 0}
    made = load_recipe(folder / "tiny.yaml", changes)
    with pytest.MonkeyPatch.context() as patch:
        assert in_this_process(patch) == []
        train_study(made, data=make_dataset(folder / "data"), out=folder / "study", folds="0-3", device="cpu")
    return folder / "study"


@pytest.fixture
def study(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained`, whose runs know where their data are."""
    shutil.copytree(trained, tmp_path / "study")
    return tmp_path / "study"


def data_of(study: Path) -> Path:
    return Path(json.loads((study / "fold_0" / "manifest.json").read_text())["data"][0]["path"])


def test_folds_as_text() -> None:
    parse_folds = partial(parse_numbers, "folds")
    assert parse_folds("0-4") == (0, 1, 2, 3, 4)
    assert parse_folds("0, 2,4-5,2") == (0, 2, 4, 5)
    assert parse_folds([3, 0]) == (3, 0)
    for wrong in ("4-0", "", "all", "-1", "0-", "1;2", "0,,1", "٣", [], [-1], [True]):
        with pytest.raises(ArgumentError, match=r"folds: expected numbers and ranges upwards, such as 0-4"):
            parse_folds(wrong)


def test_scores_are_those_of_all_cases_together(study: Path, tmp_path: Path) -> None:
    """As `evaluate` gives them for one folder into which the label maps of all folds are put by hand."""
    scores = json.loads((study / "evaluation.json").read_text())
    folds = [json.loads((study / f"fold_{fold}" / "evaluation.json").read_text()) for fold in range(4)]
    maps = tmp_path / "maps"
    maps.mkdir()
    for fold in range(4):
        for path in (study / f"fold_{fold}" / "predictions").glob("*.nii.gz"):
            shutil.copy(path, maps)
    expected = evaluate_folders(maps, data_of(study) / "labelsTr")
    assert len(expected["cases"]) == 4
    assert {key: scores[key] for key in SCORES} == {key: expected[key] for key in SCORES}
    by_name = {case["case"]: case for case in scores["cases"]}
    assert by_name == {case["case"]: case for case in expected["cases"]}
    assert scores["mean_dice"] == pytest.approx(np.mean([case["mean"] for f in folds for case in f["cases"]]))
    assert 0.2 < scores["mean_dice"] < 1
    assert [row["mean_dice"] for row in scores["folds"]] == [fold["mean_dice"] for fold in folds]
    assert [(row["fold"], row["run"], row["cases"]) for row in scores["folds"]] == [
        (i, f"fold_{i}", 1) for i in range(4)
    ]
    assert (scores["dataset"], scores["weights"], scores["epochs"]) == ("Boxes", "last", 1)
    assert len((study / "evaluation.csv").read_text().splitlines()) == 1 + 4 * 2


def test_evaluate_again_with_metrics_and_patients(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(data_of(study), tmp_path / "moved")
    write_json(data / "groups.json", {f"case_0{i}": f"patient_{i // 2}" for i in range(4)})
    words = ["evaluate", str(study), "--data", str(data), "--metrics", "nsd,brier,ece", "--device", "cpu"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    scores = json.loads((study / "evaluation.json").read_text())
    assert {case["case"]: case["patient"] for case in scores["cases"]} == {
        f"case_0{i}": f"patient_{i // 2}" for i in range(4)
    }
    assert scores["over_cases"]["patients"] == 2
    folds = [json.loads((study / f"fold_{fold}" / "evaluation.json").read_text()) for fold in range(4)]
    for name in ("nsd", "brier", "ece"):
        means = [case["mean"] for fold in folds for case in fold["metrics"][name]["cases"]]
        assert scores["metrics"][name][f"mean_{name}"] == pytest.approx(np.mean(means))
    tables = [fold["calibration"]["most_probable"] for fold in folds]
    voxels = np.array([table["voxels"] for table in tables])
    brier = np.dot(voxels, [table["brier"] for table in tables]) / voxels.sum()
    assert scores["calibration"]["most_probable"]["brier"] == pytest.approx(brier)
    assert scores["calibration"]["most_probable"]["voxels"] == voxels.sum()
    assert "Means over cases, fold by fold" in printed
    assert "all cases" in printed


def test_folds_scored_otherwise_are_not_pooled(study: Path) -> None:
    zoo.evaluate(study / "fold_1", metric_settings={"tolerance": 1.0}, metrics=["nsd"], device="cpu")
    with pytest.raises(CheckpointError, match=r"fold_1/evaluation.json: scored with other settings than .*fold_0"):
        train_study(
            load_recipe(study / "fold_0" / "recipe.yaml"), data=data_of(study), out=study, folds=[0], device="cpu"
        )
    write_json(study / "fold_1" / "evaluation.json", {"mean_dice": 0.5, "labels": {}, "cases": [], "weights": "last"})
    with pytest.raises(DataError, match="no scores as this version writes them; evaluate the study again"):
        train_study(
            load_recipe(study / "fold_0" / "recipe.yaml"), data=data_of(study), out=study, folds=[0], device="cpu"
        )
    assert len(evaluate_study(study, device="cpu")["cases"]) == 4


def test_killed_twice_and_finished(
    tiny_recipe: Path, dataset: Path, tmp_path: Path, here: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = Trainer.step, list[tuple[int, int]]()

    def counted(self: Trainer, **batch: torch.Tensor) -> dict[str, float]:
        steps.append((here[-1], self.iteration))
        if len(steps) in (2, 5):
            raise KeyboardInterrupt
        return step(self, **batch)

    monkeypatch.setattr(Trainer, "step", counted)
    made = load_recipe(tiny_recipe, QUICK | {"train.epochs": 2})
    arguments: dict[str, Any] = {"data": dataset, "out": tmp_path / "study", "folds": "0-1", "device": "cpu"}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_study(made, **arguments)
        assert not (tmp_path / "study" / "evaluation.json").exists()
    summary = train_study(made, **arguments)
    assert here == [0, 0, 1, 1]
    assert steps == [(0, 0), (0, 1), (0, 1), (1, 0), (1, 1), (1, 1)], "an epoch is lost for each kill, and no more"
    assert summary["incomplete"] == []
    assert [row["fold"] for row in summary["scores"]["folds"]] == [0, 1]
    train_study(made, **arguments)
    assert len(steps) == 6, "nothing is left to do"


def test_two_processes_share_the_folds(recipe: Recipe, dataset: Path, tmp_path: Path, here: list[int]) -> None:
    """Each takes a fold while the other is at work on its own; then one of them has the scores of both."""
    run, both = jobs.run_in_process, threading.Barrier(2, timeout=300)

    def waits(job: Job, task: Task, lock: IO[str]) -> str | None:
        both.wait()
        return run(job, task, lock)

    found: list[dict[str, Any]] = []

    def one() -> None:
        found.append(train_study(recipe, data=dataset, out=tmp_path / "study", folds="0-1", device="cpu"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "run_in_process", waits)
        threads = [threading.Thread(target=one) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(here) == [0, 1]
    assert len(found) == 2
    assert max(len(summary["scores"]["cases"]) for summary in found) == 2
    assert len(json.loads((tmp_path / "study" / "evaluation.json").read_text())["cases"]) == 2


def test_a_fold_that_fails_is_one_line_and_the_others_go_on(
    tiny_recipe: Path, dataset: Path, capsys: pytest.CaptureFixture[str], here: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe, out = load_recipe(tiny_recipe, QUICK), dataset.with_name("study")
    run = jobs.run_in_process
    monkeypatch.setattr(
        jobs, "run_in_process", lambda job, *rest: "step 7: loss is nan" if job.fold == 0 else run(job, *rest)
    )
    words = ["train", str(tiny_recipe), "--data", str(dataset), "--out", str(out), "--folds", "0-1"]
    words += ["--device", "cpu", *(word for key, value in QUICK.items() for word in ("--set", f"{key}={value}"))]
    for extra in (["--fold", "0"], ["--resume"], ["--extend-to", "9"], ["--tensorboard"]):
        assert main([*words, *extra]) == 2
        assert capsys.readouterr().err.startswith(f"folds: give no {extra[0]} beside them")
    assert main(words) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == "fold 0: failed: step 7: loss is nan"
    assert "fold 0 is not in the scores: failed" in printed.out
    assert here == [1]
    monkeypatch.setattr(jobs, "run_in_process", run)
    assert main(words) == 0
    assert here == [1, 0]
    assert "not in the scores" not in capsys.readouterr().out
    arguments: dict[str, Any] = {"data": dataset, "out": out, "folds": [2], "device": "cpu"}
    assert zoo.train(recipe, **arguments) == out
    assert len(json.loads((out / "evaluation.json").read_text())["cases"]) == 3
    monkeypatch.setattr(jobs, "run_in_process", lambda *_: "no memory")
    with pytest.raises(ZooError, match="fold 3: failed: no memory"):
        zoo.train(recipe, data=dataset, out=out, folds=[2, 3], device="cpu")
    assert zoo.train(recipe, **arguments) == out, "another fold has failed, which was not asked for"


def test_a_signal_reaches_the_process_at_work(
    recipe: Recipe, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a scheduler sends is passed on; the fold has not failed, and no other is begun."""
    interpreter = tmp_path / "interpreter"
    script = (
        "#!/bin/sh\ncat > /dev/null\ntrap 'echo saved; exit 143' USR1\nkill -USR1 $PPID\nwhile :; do sleep .1; done\n"
    )
    interpreter.write_text(script)
    interpreter.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(interpreter))
    out = tmp_path / "study"
    with pytest.raises(StoppedError, match="fold 0: stopped by SIGUSR1; the same command goes on") as caught:
        train_study(recipe, data=dataset, out=out, folds="0-1", device="cpu")
    assert caught.value.by == "SIGUSR1"
    assert (out / "fold_0.log").read_text() == "saved\n"
    assert sorted(path.name for path in out.iterdir()) == ["fold_0.lock", "fold_0.log"]


def test_what_is_no_study_is_refused_before_anything_is_made(
    recipe: Recipe, dataset: Path, study: Path, here: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = dataset.parent

    def refused(error: type[UserError], words: str, **changes: Any) -> None:
        given: dict[str, Any] = {"data": dataset, "out": tmp_path / "new", "folds": "0-1", "device": "cpu"}
        with pytest.raises(error, match=words) as caught:
            train_study(
                given.pop("recipe", recipe) if "recipe" not in changes else changes.pop("recipe"), **given | changes
            )
        assert "\n" not in str(caught.value)

    refused(DataError, r"no fold 4; there are 4, choose 0 … 3", folds="0-4")
    refused(ArgumentError, "got '4-0'", folds="4-0")
    refused(CheckpointError, "holds one run, not a study", out=study / "fold_0")
    refused(CheckpointError, "exists and is no study", out=dataset)
    other = make_dataset(tmp_path / "Dataset002_More", cases=5, seed=1)
    known = load_recipe(study / "fold_0" / "recipe.yaml")
    refused(CheckpointError, r"fold_0: checkpoint of another recipe: train.seed was 0, now 1", out=study,
            recipe=load_recipe(known, {"train.seed": 1}))  # fmt: skip
    refused(CheckpointError, r"fold_0: the run is on training cases", out=study, recipe=known, data=other)
    refused(CheckpointError, r"none\.pt: no such file or folder", init=tmp_path / "none.pt")
    own: dict[str, Any] = {"out": study, "recipe": known, "data": data_of(study)}
    refused(CheckpointError, "fold_0: began from fresh weights, .* leave out --init", init=study / "fold_1", **own)
    (study / "fold_3").rename(tmp_path / "source")
    source = tmp_path / "source" / "weights_last.safetensors"
    for path in study.glob("*/manifest.json"):
        start = {"source": str(source), "file": str(source), "sha256": "x", "report": {}}
        write_json(path, json.loads(path.read_text()) | {"init": start})
    refused(CheckpointError, rf"fold_0: began from {source}, .* give --init {source}", **own)
    refused(CheckpointError, "has changed since .*fold_0 began from it", init=source, folds=[3], **own)
    write_json(dataset / "splits_final.json", [{"train": ["case_00"], "val": ["case_01"]}] * 2)
    refused(DataError, "case 'case_01' validates in folds 0 and 1, and would count twice")
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: True)
    refused(ArgumentError, "torchrun lets several processes train one run; to share several runs, give this command")
    for words in ({"fold": 1}, {"resume": True}, {"extend_to": 9}):
        with pytest.raises(ArgumentError, match=f"give no {next(iter(words))} beside them"):
            zoo.train(recipe, data=dataset, out=tmp_path / "new", folds="0-1", **words)  # type: ignore[arg-type]
    assert here == []
    assert not (tmp_path / "new").exists()


def test_commands_for_one_run_say_that_this_is_a_study(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["export", str(study), "--out", str(tmp_path / "out"), "--license", "unknown"],):
        assert main(words) == 2
        line = capsys.readouterr().err
        assert line == f"{study}: a study of 4 runs; give one of them, such as {study / 'fold_0'}\n"


def test_folds_of_different_recipes_are_no_study(study: Path, tmp_path: Path) -> None:
    recipe = study / "fold_2" / "recipe.yaml"
    whole = recipe.read_text()
    recipe.write_text(whole.replace("seed: 0", "seed: 5"))
    for use in (lambda: zoo.load(study, device="cpu"), lambda: zoo.evaluate(study, device="cpu")):
        with pytest.raises(
            CheckpointError, match=r"fold_2: no fold of one study .*: another recipe: train.seed was 0, now 5"
        ):
            use()
    recipe.write_text(whole)
    manifest = json.loads((study / "fold_2" / "manifest.json").read_text())
    write_json(study / "fold_2" / "manifest.json", manifest | {"fold": 1})
    with pytest.raises(CheckpointError, match="fold_2: a run of fold 1"):
        zoo.load(study, device="cpu")
    start = {"source": "s", "file": "f", "sha256": "x", "report": {}}
    write_json(study / "fold_2" / "manifest.json", manifest | {"init": start})
    with pytest.raises(CheckpointError, match=r"fold_2: no fold of one study .*: it began from other weights"):
        zoo.load(study, device="cpu")
    manifest["fingerprint"][0]["mean"] += 1
    write_json(study / "fold_2" / "manifest.json", manifest)
    with pytest.raises(CheckpointError, match=r"fold_2: no fold of one study with .*fold_0: other data sets"):
        zoo.load(study, device="cpu")


def test_predict_averages_the_folds(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As by hand from the probabilities of each; what they made is known by all of their weights."""
    image = data_of(study) / "imagesTr" / "case_01_0000.nii.gz"
    volume = read_image(image)
    each = [
        zoo.load(study / f"fold_{fold}", device="cpu").probabilities(volume.array, volume.geometry) for fold in range(4)
    ]
    together = zoo.load(study, device="cpu")
    np.testing.assert_allclose(together.probabilities(volume.array, volume.geometry), np.mean(each, 0), atol=1e-6)
    assert np.ptp([one.max() for one in each]) > 1e-3, "four different networks"
    words = ["predict", str(study), str(image), str(tmp_path / "out"), "--device", "cpu"]
    assert main(words) == 0
    (target,) = (tmp_path / "out").glob("*.nii.gz")
    is_clear = np.diff(np.sort(np.mean(each, 0), 0), axis=0)[-1] > 1e-5
    np.testing.assert_array_equal(read_labels(target).array[is_clear], np.mean(each, 0).argmax(0)[is_clear])
    assert main(words) == 0
    assert "1 finished before and skipped" in capsys.readouterr().err
    assert together.weights_sha256 == json.loads((study / "evaluation.json").read_text())["weights_sha256"]
    folds = [study / f"fold_{fold}" for fold in range(4)]
    assert main(["predict", str(folds[2]), *(f"--with={folds[fold]}" for fold in (3, 0, 1)), *words[2:]]) == 0
    assert "1 finished before and skipped" in capsys.readouterr().err, "the same networks, whoever brought them"
    known = [zoo.load(several, device="cpu").weights_sha256 for several in ([study, folds[0]], [*folds, folds[0]])]
    assert known[0] == known[1] != together.weights_sha256
    (study / "fold_3" / "metrics.csv").unlink()
    assert zoo.load(study, device="cpu").weights_sha256 == together.weights_sha256, "the weights say how far they came"
    (study / "fold_3" / "weights_last.safetensors").unlink()
    (study / "fold_3" / "manifest.json").unlink()  # as of a fold that was killed before its first step
    assert len(zoo.load(study, device="cpu").models) == 3
    assert "without fold 3 (0 of 1 epochs); 'train --folds' with this --out goes on" in caplog.text
    assert main(words) == 2
    assert "made by other weights" in capsys.readouterr().err


def test_studies_are_compared_as_runs(study: Path, tmp_path: Path) -> None:
    other = shutil.copytree(study, tmp_path / "other")
    found = zoo.compare({"a": study, "b": other})
    assert len(found["cases"]) == 4
    assert found["metrics"]["dice"]["differences"][0]["mean"] == 0
    costs = found["methods"][0]["costs"]
    model = zoo.load(study / "fold_0", device="cpu").model
    assert costs["parameters"] == sum(p.numel() for p in model.parameters())
    assert costs["training_seconds"] > 0
    (other / "evaluation.json").unlink()
    with pytest.raises(DataError, match=r"other: not scored yet; 'maskmed-zoo evaluate .*other' does that"):
        zoo.compare({"a": study, "b": other})
    with pytest.raises(DataError, match=r"study: a study, whose label maps lie in its folds"):
        zoo.compare({"a": study, "b": study / "fold_0" / "predictions"}, ref=data_of(study) / "labelsTr")
