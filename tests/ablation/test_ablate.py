"""Ablations on a tiny data set: each cell once, interrupted ones continued, failures kept apart, numbers by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from maskmed_zoo.ablation.ablate import ablate
from maskmed_zoo.ablation.cell import Cell
from maskmed_zoo.ablation.plan import Ablation, plan
from maskmed_zoo.ablation.tables import summarize_ablation
from maskmed_zoo.build import network_facts
from maskmed_zoo.cli.main import main
from maskmed_zoo.errors import ArgumentError, CheckpointError, DataError, RecipeError, ZooError
from maskmed_zoo.lock import locked
from maskmed_zoo.runner import job_process
from maskmed_zoo.runner import jobs as module
from maskmed_zoo.runner.evaluate import evaluate
from maskmed_zoo.runner.job import Job, Task, order
from maskmed_zoo.runner.job_process import work
from maskmed_zoo.runner.trainer import Trainer
from tests.conftest import make_dataset

GRID = """\
schema_version: 1
name: heads
recipe: tiny.yaml
baseline: pointwise
set: [model.neck.kind=skip, train.epochs=2, train.iterations_per_epoch=2]
rows:
  pointwise: {set: [model.head.kind=pointwise, model.loss.kind=ce_dice], paper: 0.878}
  query: {}
"""


@pytest.fixture
def grid(tiny_recipe: Path) -> Path:
    """A grid of two rows beside the tiny recipe."""
    path = tiny_recipe.with_name("grid.yaml")
    path.write_text(GRID, encoding="utf-8")
    return path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Cells are run in this process; row and seed of those that were."""
    ran: list[tuple[str, int]] = []

    def run(job: Job, task: Task, lock: IO[str]) -> str | None:
        assert isinstance(job, Cell)
        ran.append((job.row, job.seed))
        try:
            work(json.loads(json.dumps(order(job, task))))
        except ZooError as error:
            return str(error)
        return None

    monkeypatch.setattr(module, "run_in_process", run)
    return ran


@pytest.fixture
def make(grid: Path, dataset: Path, tmp_path: Path) -> Callable[..., Ablation]:
    """`plan` of the grid on the tiny data set."""
    return lambda **changes: plan(
        **({"grid": grid, "data": [dataset], "out": tmp_path / "out", "device": "cpu"} | changes)
    )


@pytest.fixture
def words(grid: Path, dataset: Path, tmp_path: Path) -> list[str]:
    """The same as a command."""
    return ["ablate", str(grid), "--data", str(dataset), "--out", str(tmp_path / "out"), "--device", "cpu"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Run a shell script in place of Python in the cells' processes."""

    def install(script: str) -> None:
        interpreter = tmp_path / "interpreter"
        interpreter.write_text(f"#!/bin/sh\ncat > /dev/null\n{script}\n", encoding="utf-8")
        interpreter.chmod(0o755)
        monkeypatch.setattr("sys.executable", str(interpreter))

    return install


def test_each_cell_once_and_numbers_by_hand(
    make: Callable[..., Ablation], here: list[tuple[str, int]], tmp_path: Path
) -> None:
    ablation = make(seeds=2)
    shown: list[str] = []
    summary = ablate(ablation, show=lambda s: shown.append(f"{s['finished_cells']} of {s['cells']}"))
    assert here == [("pointwise", 0), ("pointwise", 1), ("query", 0), ("query", 1)]
    assert shown == ["0 of 4", "1 of 4", "2 of 4", "3 of 4", "4 of 4", "4 of 4"]
    assert len(list((tmp_path / "out" / "cells").glob("*/evaluation.json"))) == 4
    scores = {(cell.row, cell.seed): cell.scores() or {} for cell in ablation.cells}
    baseline, row = summary["rows"]
    assert row["mean_dice"] == pytest.approx(np.mean([scores["query", seed]["mean_dice"] for seed in (0, 1)]))
    assert row["sd_over_seeds"] == pytest.approx(np.std([scores["query", s]["mean_dice"] for s in (0, 1)], ddof=1))
    table = np.array([[[c["mean"] for c in scores[r, s]["cases"]] for s in (0, 1)] for r in ("query", "pointwise")])
    difference = table[0] - table[1]
    assert row["difference"]["mean"] == pytest.approx(difference.mean())
    spread = np.hypot(*table.mean(2).std(1, ddof=1))
    assert row["difference"]["sd_over_seeds"] == pytest.approx(spread)
    assert row["difference"]["p"] == pytest.approx(wilcoxon(difference.mean(0)).pvalue)
    assert (row["difference"]["p_holm"], row["difference"]["interval"]) == (row["difference"]["p"], None)
    assert (row["difference"]["cases"], row["difference"]["seeds"]) == (1, [2, 2])
    assert summary["remarks"] == []
    assert (baseline["difference"], baseline["paper"]) == (None, 0.878)
    network = network_facts(ablation.cells[2].recipe)
    assert (row["parameters"], row["macs"]) == (network["total_parameters"], network["macs"])
    epochs = [cell.epochs() for cell in ablation.cells if cell.row == "query"]
    assert row["seconds_per_step"] == pytest.approx(np.median([float(rows[1]["seconds"]) / 2 for rows in epochs]))
    assert row["memory"] == "resident"
    assert summary["incomplete"] == []
    assert summary["steps"] == [4]
    assert summary["datasets"] == ["Boxes"]
    assert summary["environments"][0]["torch"] == torch.__version__
    assert summary["definitions"].keys() >= {"mean_dice", "difference.p", "seconds_per_step", "peak_memory_bytes"}
    assert json.loads((tmp_path / "out" / "heads.json").read_text()) == summary
    with (tmp_path / "out" / "heads.csv").open(newline="") as file:
        assert [float(line["mean_dice"]) for line in csv.DictReader(file)] == [baseline["mean_dice"], row["mean_dice"]]
    text = (tmp_path / "out" / "heads.md").read_text()
    assert "INCOMPLETE" not in text
    assert f"| query | {row['mean_dice']:.4f} ± {row['sd_over_seeds']:.4f} (2) |" in text
    assert "| p, Holm (cases, seeds) |" in text
    assert f"| {row['difference']['p']:.2f} (1, 2) |" in text


def test_runs_of_several_folds_are_scored_together(
    make: Callable[..., Ablation], here: list[tuple[str, int]], tmp_path: Path
) -> None:
    ablation = make(seeds="3-4", folds="1,0")
    assert [(cell.seed, cell.fold) for cell in ablation.cells[:4]] == [(3, 1), (3, 0), (4, 1), (4, 0)]
    half = replace(ablation, cells=tuple(cell for cell in ablation.cells if (cell.seed, cell.fold) != (4, 0)))
    summary = ablate(half)
    assert [row["seeds"] for row in summary["rows"]] == [[3], [3]]  # the fourth has one fold of two
    summary = ablate(ablation)
    assert [(row, seed) for row, seed in here if row == "query"] == [("query", seed) for seed in (3, 3, 4, 4)]
    scores = {(cell.row, cell.seed, cell.fold): cell.scores() or {} for cell in ablation.cells}
    by_hand = [
        np.mean([case["mean"] for fold in (0, 1) for case in scores["query", seed, fold]["cases"]]) for seed in (3, 4)
    ]
    _, row = summary["rows"]
    assert row["dice"] == pytest.approx(by_hand)
    assert row["mean_dice"] == pytest.approx(np.mean(by_hand))
    validation = {case["case"] for fold in (0, 1) for case in scores["query", 3, fold]["cases"]}
    assert row["difference"]["cases"] == len(validation) == 2
    assert (summary["seeds"], summary["folds"]) == ([3, 4], [1, 0])
    assert "on Boxes, folds 1, 0; 8 of 8 cells" in (tmp_path / "out" / "heads.md").read_text()
    with (tmp_path / "out" / "heads.csv").open(newline="") as file:
        line = next(csv.DictReader(file))
    assert (line["folds"], line["seeds"], line["steps"]) == ("1 0", "3 4", "4")
    with (tmp_path / "out" / "heads_cases.csv").open(newline="") as file:
        written = {(c["row"], int(c["seed"]), int(c["fold"]), c["case"]): c for c in csv.DictReader(file)}
    assert len(written) == 8
    for (name, seed, fold, case), found in written.items():
        (wanted,) = [c for c in scores[name, seed, fold]["cases"] if c["case"] == case]
        assert float(found["mean_dice"]) == pytest.approx(wanted["mean"], abs=1e-6)
        for label, value in wanted["dice"].items():
            text = found[f"dice/{label}"]
            assert text == "" if value is None else float(text) == pytest.approx(value, abs=1e-6)
    assert f"torch {torch.__version__}, " in line["made_with"]


def test_nothing_is_repeated_and_equal_cells_are_shared(
    make: Callable[..., Ablation], here: list[tuple[str, int]], grid: Path
) -> None:
    quick = ["train.epochs=1", "train.iterations_per_epoch=1"]
    ablate(make(overrides=quick))
    assert len(here) == 2
    ablate(make(overrides=quick))
    assert len(here) == 2
    grid.write_text(GRID.replace("name: heads", "name: other").replace("query: {}", "the same: {}"), encoding="utf-8")
    summary = ablate(make(overrides=quick))
    assert len(here) == 2
    assert [row["seeds"] for row in summary["rows"]] == [[0], [0]]
    (evaluated,) = (cell for cell in make(overrides=quick).cells if cell.row == "the same")
    evaluated.run.evaluation_file.write_text('{"mean_dice": 0.5, "ca')
    ablate(make(overrides=quick))
    assert here[2:] == [("the same", 0)], "a score that was cut off is made again"
    assert evaluated.resources()["peak_memory_bytes"] > 0, "of the training, which was not repeated"


def test_a_killed_cell_goes_on(
    make: Callable[..., Ablation], here: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step, steps = Trainer.step, []

    def dies(self: Trainer, **batch: torch.Tensor) -> dict[str, float]:
        steps.append(self.iteration)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(self, **batch)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        ablate(make())
    assert [cell.state() for cell in make().cells] == ["unfinished, 1 of 2 epochs", "new"]
    summary = json.loads((tmp_path / "out" / "heads.json").read_text())
    assert (summary["finished_cells"], summary["rows"][1]["mean_dice"]) == (0, None)
    assert "INCOMPLETE, 0 of 2 cells" in (tmp_path / "out" / "heads.md").read_text()
    steps[:] = []
    monkeypatch.setattr(Trainer, "step", lambda self, **batch: steps.append(self.iteration) or step(self, **batch))
    ablate(make())
    assert steps == [2, 3, 0, 1, 2, 3], "the second epoch of the first cell, then the second cell"
    assert [cell.state() for cell in make().cells] == ["finished", "finished"]


def test_a_cell_in_other_hands_is_left_alone(make: Callable[..., Ablation], here: list[tuple[str, int]]) -> None:
    quick = make(overrides=["train.epochs=1", "train.iterations_per_epoch=1"])
    first, _ = quick.cells
    first.lock.parent.mkdir(parents=True)
    with locked(first.lock):
        assert first.state().startswith("running, pid ")
        summary = ablate(quick)
        assert here == [("query", 0)]
        assert [(cell["row"], cell["state"]) for cell in summary["incomplete"]] == [("pointwise", "new")]
    ablate(quick)
    assert here == [("query", 0), ("pointwise", 0)]


def test_a_process_of_its_own_by_the_command(
    words: list[str], grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid.write_text(GRID.replace("  query: {}\n", ""), encoding="utf-8")
    words = [*words, "--set", "train.epochs=1"]
    assert main([*words, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert " new" in capsys.readouterr().out
    assert main(words) == 0
    assert "1 of 1 cells" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "heads.json").read_text())
    assert summary["rows"][0]["seeds"] == [0]
    assert 100 < summary["rows"][0]["peak_memory_bytes"] / 2**20 < 8000
    (log,) = (tmp_path / "out" / "cells").glob("*.log")
    assert "epoch 1/1" in log.read_text()
    assert main([*words, "--dry-run"]) == 0
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo 'epoch 1/2'; echo 'step 7: loss is nan' >&2; exit 1", "step 7: loss is nan"),
        ("kill -9 $$", "ended by signal 9 (SIGKILL); see "),
        ("exit 0", "ended without a whole "),
    ],
)
def test_a_cell_that_fails_is_one_line_and_the_others_go_on(
    script: str, told: str, words: list[str], fake: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake(script)
    assert main(words) == 1
    printed = capsys.readouterr()
    assert "INCOMPLETE, 0 of 2 cells" in printed.out
    lines = printed.err.splitlines()[-2:]
    assert [line.split(": ")[0] for line in lines] == [f"row '{row}', seed 0, fold 0" for row in ("pointwise", "query")]
    assert all(line.split("failed: ")[1].startswith(told) for line in lines)
    assert main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("failed: ") == 2


def test_a_training_that_diverges_ends_its_cell_alone(
    make: Callable[..., Ablation], here: list[tuple[str, int]], grid: Path
) -> None:
    diverges = "pointwise: {set: [train.optimizer.lr=1e30, train.max_skipped_steps=0, "
    grid.write_text(GRID.replace("pointwise: {set: [", diverges), encoding="utf-8")
    summary = ablate(make())
    assert here == [("pointwise", 0), ("query", 0)]
    (left,) = summary["incomplete"]
    assert left["state"].startswith("failed: step 1: ")
    assert summary["rows"][1]["difference"] is None, "there is no baseline yet"
    ablate(make())
    assert here[2:] == [("pointwise", 0)], "the next call tries it again"


def test_mistakes_are_told_before_anything_is_made(
    make: Callable[..., Ablation], words: list[str], grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid.write_text(GRID.replace(", model.loss.kind=ce_dice", "") + "  odd: {set: ['data.patch_size=[8, 18, 16]']}\n")
    with pytest.raises(RecipeError) as caught:
        make()
    places = [line.removeprefix(f"{grid}:").split(": ")[:2] for line in caught.value.problems]
    assert places == [["7:3", "row 'pointwise'"], ["9:3", "row 'odd'"]]
    assert "write 'kind: ce_dice'" in caught.value.problems[0]
    assert main(words) == 2
    assert capsys.readouterr().err == f"{caught.value}\n"
    grid.write_text(GRID, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"7:3: row 'pointwise', 'query': .*labels .* differ"):
        make(overrides=["data.labels={background: 0, liver: 1}"])
    assert main([*words, "--set", "train.epoch=1"]) == 2
    assert capsys.readouterr().err.startswith("--set train.epoch=1: train.epoch: unknown key; did you mean 'epochs'?")
    with pytest.raises(DataError, match="no fold 7"):
        make(folds=[7])
    for seeds in (0, "0"):
        with pytest.raises(ArgumentError, match="seeds: expected 1 or more, or which, such as 3-7; got 0"):
            make(seeds=seeds)
    with pytest.raises(ArgumentError, match=r"seeds: expected numbers and ranges upwards, .* got '3-'"):
        make(seeds="3-")
    with pytest.raises(ArgumentError, match="seeds: expected numbers"):
        make(seeds="9" * 5000)
    assert not (tmp_path / "out").exists()


def test_a_cell_is_named_after_what_decides_its_result(
    make: Callable[..., Ablation], dataset: Path, tmp_path: Path
) -> None:
    other = make_dataset(tmp_path / "Dataset002_More", cases=2, seed=1)
    two = make(data=[dataset, f"{other}@all"])
    assert two.datasets == ("Boxes", "Boxes@all")
    assert two.task.data == (str(dataset), f"{other}@all")
    runs = [
        {cell.run.path.name for cell in ablation.cells}
        for ablation in (make(), make(folds="1"), make(overrides=["train.epochs=3"]), two)
    ]
    assert len(set().union(*runs)) == 8
    assert {cell.run.path.name for cell in make(seeds=2, device=None).cells} > runs[0]


def test_chosen_rows_and_the_baseline(make: Callable[..., Ablation], grid: Path) -> None:
    larger = "  larger: {set: [model.head.kind=pointwise, model.loss.kind=ce_dice], parameters_of: query}\n"
    grid.write_text(GRID + larger, encoding="utf-8")
    every, chosen = make(), make(rows=["larger"])
    assert [cell.row for cell in every.cells] == ["pointwise", "query", "larger"]
    assert [cell.row for cell in chosen.cells] == ["pointwise", "larger"]
    assert [cell.run for cell in chosen.cells] == [every.cells[0].run, every.cells[2].run], "as large as a row left out"
    assert [row["row"] for row in summarize_ablation(chosen)["rows"]] == ["pointwise", "larger"]
    other = summarize_ablation(make(rows=["larger"], baseline="query"))
    assert ([row["row"] for row in other["rows"]], other["baseline"]) == (["query", "larger"], "query")
    assert [row["row"] for row in summarize_ablation(make(baseline="query"))["rows"]] == [
        "pointwise",
        "query",
        "larger",
    ]
    with pytest.raises(ArgumentError, match="row 'lager': grid 'heads' has none; did you mean 'larger'"):
        make(rows=["lager"])


def test_rows_seeds_and_folds_of_the_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--row", "pointwise", "--baseline", "query", "--seeds", "3-4", "--folds", "0,2", "--dry-run"]
    assert main([*words, *asked]) == 0
    lines = [line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines == [
        [row, seed, fold, "new"] for row in ("pointwise", "query") for seed in ("3", "4") for fold in ("0", "2")
    ]
    assert main([*words, "--baseline", "quer", "--dry-run"]) == 2
    assert "row 'quer': grid 'heads' has none; did you mean 'query'?" in capsys.readouterr().err
    assert main([*words, "--folds", "0-9", "--dry-run"]) == 2
    assert "no fold" in capsys.readouterr().err


def test_a_decoder_grows_to_the_size_of_another_row(make: Callable[..., Ablation], grid: Path) -> None:
    larger = "  larger: {set: [model.head.kind=pointwise, model.loss.kind=ce_dice], parameters_of: query}\n"
    grid.write_text(GRID + larger, encoding="utf-8")
    size = {name: network["total_parameters"] for name, network in make().networks.items()}
    assert size["larger"] == pytest.approx(size["query"], rel=0.05)
    assert size["larger"] > 1.2 * size["pointwise"]
    assert make().cells[2].recipe.model.decoder.model_dump()["parameters"] > 0


def test_a_score_of_an_earlier_epoch_does_not_pass_for_the_last(
    make: Callable[..., Ablation], here: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the first epoch, looked at by hand, trained to the end, and stopped again before it is scored."""
    with monkeypatch.context() as patch:
        stop_when(patch, Trainer, "step", calls=3)
        with pytest.raises(KeyboardInterrupt):
            ablate(make())
    first, _ = make().cells
    evaluate(first.run, device="cpu")
    with monkeypatch.context() as patch:
        stop_when(patch, job_process, "evaluate", calls=1)
        with pytest.raises(KeyboardInterrupt):
            ablate(make())
    assert len(first.epochs()) == 2
    assert first.scores() is None


def stop_when(patch: pytest.MonkeyPatch, owner: object, name: str, calls: int) -> None:
    """Interrupt at the call of that number."""
    original, count = getattr(owner, name), iter(range(1, 1000))

    def counted(*args: object, **keywords: object) -> object:
        if next(count) == calls:
            raise KeyboardInterrupt
        return original(*args, **keywords)

    patch.setattr(owner, name, counted)


def test_cells_of_other_cases_are_not_taken_for_these(
    make: Callable[..., Ablation], here: list[tuple[str, int]], tmp_path: Path
) -> None:
    """Another data set that calls itself the same, into the same folder."""
    quick = ["train.epochs=1", "train.iterations_per_epoch=1"]
    ablate(make(overrides=quick))
    other = make_dataset(tmp_path / "Dataset002_More", cases=5, seed=1)
    with pytest.raises(CheckpointError, match="the run is on training cases that are now others"):
        make(overrides=quick, data=[other])
    assert len(make(overrides=quick).cells) == 2
