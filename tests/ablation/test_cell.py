"""Cells of an ablation are found by what they were trained with, also where their name is of an earlier version."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import create_model

from maskmed_zoo.ablation.cell import Cell, CellFolder
from maskmed_zoo.data.preprocess import PREPROCESSING
from maskmed_zoo.files import write_json
from maskmed_zoo.lock import locked
from maskmed_zoo.necks import fsad
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.job import Task, run_in_process
from maskmed_zoo.runner.metrics_file import write_rows
from maskmed_zoo.runner.resources import RESOURCES
from maskmed_zoo.runner.run_folder import RunFolder

MANIFEST: dict[str, Any] = {"data": [], "dataset": "Boxes", "fold": 0, "seed": 0, "validation": [], "fingerprint": []}
MANIFEST["preprocessing"] = PREPROCESSING


def held(out: Path, name: str, recipe_file: Path, **facts: Any) -> RunFolder:
    """A run of the recipe, as far as cells look at it."""
    run = RunFolder(out / "cells" / name)
    run.write_recipe(load_recipe(recipe_file))
    write_json(run.manifest_file, MANIFEST | facts)
    return run


def test_a_setting_added_since_makes_no_new_cell(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = CellFolder(tmp_path, ["Boxes"], 0).cell("row", load_recipe(tiny_recipe))
    run = held(tmp_path, before.run.path.name, tiny_recipe)
    config = create_model("FSADConfig", __base__=fsad.FSADConfig, kind=(Literal["fsad"], "fsad"), extra=(bool, False))
    monkeypatch.setattr(fsad.FSADNeck, "Config", config)
    folder = CellFolder(tmp_path, ["Boxes"], 0)
    assert folder.cell("row", load_recipe(tiny_recipe)).run == run
    other = folder.cell("row", load_recipe(tiny_recipe, {"model.neck.extra": True})).run
    assert other != run
    assert not other.path.exists()


def test_how_scores_are_computed_makes_no_new_cell(tiny_recipe: Path, tmp_path: Path) -> None:
    folder = CellFolder(tmp_path, ["Boxes"], 0)
    plain, other = load_recipe(tiny_recipe), load_recipe(tiny_recipe, {"evaluation.tolerance": 0.5})
    assert folder.cell("row", other).run == folder.cell("row", plain).run
    run = held(tmp_path, "of_an_earlier_name", tiny_recipe)
    assert CellFolder(tmp_path, ["Boxes"], 0).cell("row", other).run == run


def test_another_data_set_fold_or_recipe_is_another_cell(tiny_recipe: Path, tmp_path: Path) -> None:
    run = held(tmp_path, "of_an_earlier_name", tiny_recipe)
    held(tmp_path, "other_data", tiny_recipe, dataset="Other")
    held(tmp_path, "images_prepared_otherwise", tiny_recipe, preprocessing=PREPROCESSING - 1)
    (tmp_path / "cells" / "broken").mkdir()
    (tmp_path / "cells" / "broken" / "recipe.yaml").write_text("name: [")
    recipe = load_recipe(tiny_recipe)
    assert CellFolder(tmp_path, ["Boxes"], 0).cell("row", recipe).run == run
    open_ended = load_recipe(tiny_recipe, {"data.labels": None, "data.channels": None})
    assert CellFolder(tmp_path, ["Boxes"], 0).cell("row", open_ended).run == run
    for names, fold, wanted in (
        (["Boxes", "More"], 0, recipe),
        (["Boxes"], 1, recipe),
        (["Boxes"], 0, load_recipe(recipe, {"train.seed": 1})),
    ):
        assert not CellFolder(tmp_path, names, fold).cell("row", wanted).run.path.exists()


@pytest.fixture
def finished(tiny_recipe: Path, tmp_path: Path) -> Cell:
    """A cell of two epochs, as far as its files tell."""
    cell = CellFolder(tmp_path, ["Boxes"], 0).cell("row", load_recipe(tiny_recipe))
    held(tmp_path, cell.run.path.name, tiny_recipe)
    write_json(cell.run.evaluation_file, SCORES)
    write_json(cell.run.path / RESOURCES, {"peak_memory_bytes": 5, "memory": "resident"})
    rows = [{"epoch": e, "iterations": 3 * (e + 1), "loss": 1.0, "seconds": 2.0} for e in range(2)]
    write_rows(rows, cell.run.metrics_file)
    return cell


SCORES: dict[str, Any] = {
    "weights": "last", "epochs": 2, "mean_dice": 0.5, "labels": {"left": {"mean": 0.5}},
    "cases": [{"case": "a", "mean": 0.5}],
}  # fmt: skip
DAMAGES: list[dict[str, Any]] = [
    {"mean_dice": "0.5"}, {"mean_dice": True}, {"mean_dice": 1e300}, {"mean_dice": [0.5]}, {"cases": None},
    {"cases": [3]},
    {"cases": [{"case": 3, "mean": 0.5}]}, {"cases": [{"case": "a", "mean": "0.5"}]}, {"cases": [{"case": "a"}]},
    {"labels": [3]}, {"epochs": "2"}, {"epochs": 1}, {"epochs": 10**30}, {"weights": "best"}, {"weights": None},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_scores_of_other_content_are_none(finished: Cell, damage: dict[str, Any]) -> None:
    assert (finished.scores() or {})["mean_dice"] == 0.5
    write_json(finished.run.evaluation_file, SCORES | damage)
    assert finished.scores() is None
    assert finished.state() == "unfinished, 2 of 2 epochs"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"mean_dice": 0.5, "mean_dice": 0.6}', b"\xff", b"[" * 100_000, b"\0"]
)
def test_files_that_are_no_scores(finished: Cell, content: bytes) -> None:
    for path in (finished.run.evaluation_file, finished.run.path / RESOURCES, finished.failed):
        path.write_bytes(content)
    assert finished.scores() is None
    assert finished.resources() == {}
    assert finished.state().startswith("failed: ")
    assert "\n" not in finished.state()


def test_peak_memory_is_the_manifests_and_of_earlier_versions_in_a_file(finished: Cell) -> None:
    old, new = ({"peak_memory_bytes": size, "memory": "resident"} for size in (1, 2))
    write_json(finished.run.path / RESOURCES, old)
    assert finished.resources() == old
    write_json(finished.run.manifest_file, MANIFEST | new)
    assert finished.resources() == new


def test_a_pipe_is_waited_for_by_nobody(finished: Cell) -> None:
    for path in (
        finished.run.evaluation_file,
        finished.run.path / RESOURCES,
        finished.failed,
        finished.run.metrics_file,
    ):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    assert (finished.scores(), finished.resources(), finished.epochs()) == (None, {}, [])
    assert "is no plain file" in finished.state()


def test_lost_metrics_do_not_undo_a_finished_cell(finished: Cell) -> None:
    """What the weights say of their epochs counts; files of earlier versions are taken by the rows of metrics."""
    whole = finished.run.metrics_file.read_bytes()
    for damaged in (b"", whole[:-2], whole.replace(b"1,6", b"1,7"), b"\xff", b"x"):
        finished.run.metrics_file.write_bytes(damaged)
        assert finished.state() == "finished"
    finished.run.metrics_file.unlink()
    assert finished.state() == "finished"
    write_json(finished.run.evaluation_file, {key: value for key, value in SCORES.items() if key != "epochs"})
    assert finished.scores() is None
    finished.run.metrics_file.write_bytes(whole[:-2])
    assert finished.state() == "unfinished, 1 of 2 epochs"
    finished.run.metrics_file.write_bytes(whole)
    assert finished.state() == "finished"


def test_a_log_is_a_new_file(finished: Cell, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    finished.log.symlink_to(precious)
    with locked(finished.lock) as lock:
        assert lock is not None
        failure = run_in_process(finished, Task((str(tmp_path / "none"),), "cpu"), lock)
    assert "no such folder" in (failure or "")
    assert precious.read_text() == "mine"
    assert not finished.log.is_symlink()
