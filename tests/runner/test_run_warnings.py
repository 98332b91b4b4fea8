"""Each warning comes from a run in which it is due, once, and none from healthy ones.

`healthy_runs` holds the metrics of short runs on made-up boxes (`tests.conftest`), one of each kind of head and loss,
and of 31 epochs of nnU-Net's network on the hippocampus, written by a version that had no Dice by label.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.runner import run_warnings
from maskmed_zoo.runner.run_warnings import DETECTORS, RunWarnings, read_warnings, warnings_of
from tests.conftest import TINY

HEALTHY = sorted((Path(__file__).parent / "healthy_runs").glob("*.csv"))
Rows = list[dict[str, Any]]


def recipe_of(folder: Path, epochs: int = 30, steps: int = 100) -> Recipe:
    (folder / "tiny.yaml").write_text(TINY)
    return load_recipe(folder / "tiny.yaml", {"train.epochs": epochs, "train.iterations_per_epoch": steps})


def found_in(rows: Rows, recipe: Recipe) -> list[tuple[str, list[str], int]]:
    """Kinds, labels and epochs of what is said while the run goes on."""
    known: list[run_warnings.RunWarning] = []
    for count in range(1, len(rows) + 1):
        known += warnings_of(rows[:count], recipe, known)
    return [(each.kind, each.labels, each.epoch) for each in known]


@pytest.mark.parametrize("path", HEALTHY, ids=lambda path: path.stem)
def test_nothing_is_said_of_a_healthy_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though those runs are short, and are judged from their first steps on."""
    with path.open(newline="") as file:
        rows: Rows = list(csv.DictReader(file))
    steps = int(rows[0]["iterations"])
    monkeypatch.setattr(run_warnings, "FEWEST_STEPS", 3 * steps)
    recipe = recipe_of(tmp_path, epochs=max(10, len(rows)), steps=steps)
    assert found_in(rows, recipe) == []
    assert float(rows[-1]["validation_dice"]) > 0.8
    assert float(rows[0]["validation_dice"]) < 1


def test_there_are_healthy_runs() -> None:
    assert len(HEALTHY) >= 5
    assert {"queries_collapsed", "labels_not_found", "labels_unseen", "gradients_explode", "data_starved"} == {
        *DETECTORS
    }


def healthy(epochs: int = 30) -> Rows:
    """Rows of 100 steps in 60 s each; from the third epoch on all is learned."""
    return [
        {"epoch": e, "iterations": 100 * (e + 1), "loss": 1.0, "gradient_norm": 3.0 + (e % 3), "skipped": 0,
         "validation_dice": 0.8, "validation_dice/left": 0.0 if e < 3 else 0.9, "validation_dice/right": 0.7,
         "query_classes": 1 if e < 2 else 3, "seconds": 60.0, "data_seconds": 50.0 if e == 0 else 6.0}
        for e in range(epochs)
    ]  # fmt: skip


def change(rows: Rows, first: int, **values: Any) -> Rows:
    return [row | (values if row["epoch"] >= first else {}) for row in rows]


PLANTED: dict[str, tuple[Callable[[Rows], Rows], list[tuple[str, list[str], int]]]] = {
    "healthy": (lambda rows: rows, []),
    "one label from the start": (
        lambda rows: change(rows, 0, **{"validation_dice/left": 0.004}), [("labels_not_found", ["left"], 5)],
    ),
    "one label is lost, later the other": (
        lambda rows: change(
            change(rows, 10, **{"validation_dice/right": 0.0}), 20, **{"validation_dice/left": 0.0}
        ),
        [("labels_not_found", ["right"], 15), ("labels_not_found", ["left"], 25)],
    ),
    "a label in no patch": (
        lambda rows: [{key: value for key, value in row.items() if not key.endswith("right")} for row in rows],
        [("labels_unseen", ["right"], 0)],
    ),
    "one class, and with it no label": (
        lambda rows: change(rows, 2, query_classes=1, **{"validation_dice/left": 0.0, "validation_dice/right": 0.0}),
        [("queries_collapsed", [], 5)],
    ),
    "no class": (lambda rows: change(rows, 12, query_classes=0), [("queries_collapsed", [], 17)]),
    "norms": (lambda rows: change(rows, 14, gradient_norm=50.0), [("gradients_explode", [], 15)]),
    "norms from the start": (lambda rows: change(rows, 0, gradient_norm=50.0), []),
    "norms that are not clipped": (
        lambda rows: change([row | {"gradient_norm": 0.5} for row in rows], 14, gradient_norm=11.0), [],
    ),
    "one bad epoch": (lambda rows: change(change(rows, 14, gradient_norm=1e6), 15, gradient_norm=3.0), []),
    "a loss scaler at work": (lambda rows: change(rows, 14, gradient_norm=math.inf), []),
    "a session that begins": (lambda rows: change(change(rows, 7, data_seconds=59.0), 8, data_seconds=4.0), []),
    "slow disk": (lambda rows: change(rows, 7, data_seconds=40.0), [("data_starved", [], 9)]),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("is_read", [False, True], ids=["made", "read"])
def test_what_is_wrong_is_found_once(planted: str, is_read: bool, tmp_path: Path) -> None:
    """Rows as they are made, and as texts of a file, whose empty cells are what is not there."""
    plant, expected = PLANTED[planted]
    rows = plant(healthy())
    if is_read:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        rows = [{name: str(row.get(name, "")) for name in columns} for row in rows]
    assert found_in(rows, recipe_of(tmp_path)) == expected


def test_an_earlier_versions_rows_say_nothing(tmp_path: Path) -> None:
    new = ("query_classes", "data_seconds", "validation_dice/left", "validation_dice/right")
    rows = [{key: value for key, value in row.items() if key not in new} for row in healthy()]
    assert found_in(rows, recipe_of(tmp_path)) == []


def test_how_long_something_has_to_last(tmp_path: Path) -> None:
    """A fifth of the run, 500 steps and three validations."""
    for epochs, steps, every, epoch in ((30, 100, 1, 5), (100, 100, 1, 19), (1000, 250, 1, 99), (30, 100, 4, 11)):
        recipe = load_recipe(recipe_of(tmp_path, epochs, steps), {"train.validate_every": every})
        rows = [
            {"epoch": e, "iterations": steps * (e + 1)}
            | ({"validation_dice": 0.0, "validation_dice/left": 0.0, "validation_dice/right": 0.9}
               if (e + 1) % every == 0 else {})
            for e in range(150)
        ]  # fmt: skip
        ((_, _, when),) = found_in(rows, recipe)
        assert when in (epoch, epoch - 1)


def test_words(tmp_path: Path) -> None:
    (found,) = warnings_of(change(healthy(), 0, **{"validation_dice/left": 0.0})[:6], recipe_of(tmp_path))
    assert found.text.startswith("label 'left' is not found in the last 6 validations, since epoch 1; look at the ")
    (found,) = warnings_of(change(healthy(), 0, data_seconds=36.0), recipe_of(tmp_path))
    assert found.text.startswith("60 % of the time is spent waiting for patches; give more --workers")
    (found,) = warnings_of(change(healthy(20), 14, gradient_norm=44.0)[:16], recipe_of(tmp_path))
    assert found.text.startswith(
        "the gradient norm is 44, 11 times that of the epochs before; lower train.optimizer.lr"
    )
    assert all("\n" not in each.text for each in (found,))


def test_they_are_said_once_and_kept_for_whoever_comes_later(tmp_path: Path) -> None:
    """Also by a run that is resumed: what comes again is said again, and stands there once."""
    recipe, path, said = recipe_of(tmp_path), tmp_path / "warnings.json", list[str]()
    rows: Rows = []
    watching = RunWarnings(path, rows, said.append)
    watching.on_start(tmp_path, recipe, 0)
    for row in change(change(healthy(), 7, data_seconds=40.0), 10, **{"validation_dice/left": 0.0})[:20]:
        rows.append(row)
        watching.on_epoch(row)
    assert [line.split(":")[0] for line in said] == ["warning, epoch 10", "warning, epoch 16"]
    assert [each["kind"] for each in json.loads(path.read_text())] == ["data_starved", "labels_not_found"]
    again = RunWarnings(path, rows[:12], said.append)
    again.on_start(tmp_path, recipe, 1250)
    assert [each.kind for each in read_warnings(path)] == ["data_starved"]
    again.on_epoch(rows[11])
    assert len(said) == 2
    again.on_start(tmp_path, recipe, 300)
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "{}", "[3]", '[{"kind": 3}]', "\0"])
def test_damaged_ones_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "warnings.json").write_text(content)
    assert read_warnings(tmp_path / "warnings.json") == []
