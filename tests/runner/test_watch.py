"""What looks at a run while it is trained: a line per step, callbacks, a picture, and what a person is shown."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

import maskmed_zoo as zoo
from maskmed_zoo.errors import ArgumentError, NonFiniteError, OutputError
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.runner import loop, progress_picture, row_words, training_display
from maskmed_zoo.runner.callbacks import Callback, Callbacks
from maskmed_zoo.runner.display import Display, PlainConsole
from maskmed_zoo.runner.divergence import diverged
from maskmed_zoo.runner.progress_picture import ProgressPicture
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.steps_file import StepsFile
from maskmed_zoo.runner.train import train
from maskmed_zoo.runner.trainer import Trainer
from tests.conftest import TINY, make_dataset

EPOCHS, STEPS = 2, 3


class Notes(Callback):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def on_start(self, run: Path, recipe: Recipe, step: int) -> None:
        self.told.append(("start", run.name, recipe.name, step))

    def on_step(self, values: Mapping[str, float]) -> None:
        self.told.append(("step", dict(values)))

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self.told.append(("epoch", dict(row)))

    def on_save(self) -> None:
        self.told.append(("save",))

    def on_end(self, error: BaseException | None) -> None:
        self.told.append(("end", error))


class Breaks(Notes):
    """Fails at its second step."""

    def on_step(self, values: Mapping[str, float]) -> None:
        super().on_step(values)
        if values["iteration"] == 2:
            raise ConnectionError("nobody\nthere")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Notes, Breaks, str]:
    """A run that one callback watched and another left early, and what was said; its fourth step was skipped."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("watch")
    (folder / "tiny.yaml").write_text(TINY)
    data, said, step = make_dataset(folder / "data"), io.StringIO(), Trainer.step

    def skips(self: Trainer, **batch: Any) -> dict[str, float]:
        if self.iteration == 3:
            batch["image"] = torch.full_like(batch["image"], torch.nan)
        return step(self, **batch)

    notes, breaks = Notes(), Breaks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", skips)
        run = train(
            load_recipe(folder / "tiny.yaml"), data=data, out=folder / "run", device="cpu",
            callbacks=[breaks, notes], display=Display(PlainConsole(file=said, width=1000)),
        )  # fmt: skip
    return run, notes, breaks, said.getvalue()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_per_step_that_the_rows_are_made_of(made: tuple[RunFolder, Notes, Breaks, str]) -> None:
    run, *_ = made
    steps = lines_of(run.steps_file)
    with run.metrics_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [line["iteration"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["iteration"] for line in steps if "loss" not in line] == [4]
    for epoch, row in enumerate(rows):
        own = steps[epoch * STEPS : (epoch + 1) * STEPS]
        for name in ("loss", "class", "bce", "dice", "gradient_norm"):
            assert float(row[name]) == pytest.approx(fmean(line[name] for line in own if name in line), rel=1e-12)
        assert float(row["lr_cnn"]) == own[0]["lr_cnn"]
        assert 0 < sum(line["data_seconds"] for line in own) < float(row["data_seconds"]) < float(row["seconds"])
        assert all(line["data_seconds"] < line["seconds"] for line in own)
        assert sum(line["seconds"] for line in own) < float(row["seconds"])


def test_the_dice_of_every_label_is_in_the_rows(made: tuple[RunFolder, Notes, Breaks, str]) -> None:
    run, *_ = made
    with run.metrics_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        labels = [float(row[f"validation_dice/{name}"]) for name in ("left", "right")]
        assert float(row["validation_dice"]) == pytest.approx(fmean(labels))
        assert row["query_classes"] in ("1", "2", "3")


def test_callbacks_are_told_in_order(made: tuple[RunFolder, Notes, Breaks, str]) -> None:
    run, notes, *_ = made
    epoch = ["step"] * STEPS + ["epoch", "save"]
    assert [what for what, *_ in notes.told] == ["start", *epoch, *epoch, "end"]
    assert notes.told[0] == ("start", "run", "tiny", 0)
    assert notes.told[-1] == ("end", None)
    steps = [values for what, *rest in notes.told if what == "step" for values in rest]
    assert steps == lines_of(run.steps_file)
    rows = [row for what, *rest in notes.told if what == "epoch" for row in rest]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert all(isinstance(value, int | float) for row in rows for value in row.values())


def test_a_callback_that_fails_is_told_once_and_left_out(made: tuple[RunFolder, Notes, Breaks, str]) -> None:
    _, notes, breaks, said = made
    assert [what for what, *_ in breaks.told] == ["start", "step", "step"]
    line = "callback Breaks: on_step failed (ConnectionError: nobody); it is left out from here on"
    assert said.splitlines().count(line) == 1
    assert len(notes.told) == 12


def test_an_end_by_a_callback_is_not_held_back() -> None:
    """Ctrl-C while it is at work, and what a run's own record raises."""

    class Stops(Callback):
        def on_step(self, values: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    class Full(Callback):
        def on_step(self, values: Mapping[str, float]) -> None:
            raise OutputError("no space")

    for own, others, kind in (([], [Stops()], KeyboardInterrupt), ([Full()], [], OutputError)):
        notes, said = Notes(), list[str]()
        with pytest.raises(kind) as caught, Callbacks([*own, notes], others, said.append) as callbacks:
            callbacks.step({"iteration": 1})
        assert notes.told[-1] == ("end", caught.value)
        assert said == []


def test_callbacks_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="callbacks: expected a list of Callbacks, got"):
        zoo.train("maskmed_phantom", data=tmp_path, out=tmp_path / "run", callbacks=[Notes])  # pyright: ignore[reportArgumentType]


def test_what_is_shown_where_there_is_no_terminal(made: tuple[RunFolder, Notes, Breaks, str]) -> None:
    *_, said = made
    first, second = (line for line in said.splitlines() if line.startswith("epoch "))
    words = ["epoch 1/2  loss ", " (class ", ", bce ", ", dice ", ")  validation Dice ", "(left ", ", right "]
    words += [")  gradient norm ", ", rate 0.001, 0.0003  ", " s, ", " % waiting for patches  left 0:0"]
    for part in words:
        assert part in first
    assert ", 1 step skipped  " in second
    assert second.endswith("left 0:00:00")


def test_steps_that_come_again_and_what_is_damaged_are_cut_off(tmp_path: Path, tiny_recipe: Path) -> None:
    recipe, path = load_recipe(tiny_recipe), tmp_path / "steps.jsonl"
    file = StepsFile(path)
    file.on_start(tmp_path, recipe, 0)
    assert not path.exists()
    for iteration in range(1, 6):
        file.on_step({"iteration": iteration, "loss": 1 / iteration, "gradient_norm": math.inf})
        assert not path.exists(), "kept until the state is written"
    file.on_save()
    whole = path.read_bytes()
    assert lines_of(path)[2] == {"iteration": 3, "loss": 1 / 3, "gradient_norm": None}
    ends = [sum(map(len, whole.splitlines(keepends=True)[:count])) for count in range(6)]
    tails = (
        b"",
        b'{"iteration": 9}\n',
        b'{"iteration": 6, "lo',
        b"\0" * 9,
        b"[" * 10**5 + b"\n",
        b'{"iteration": "6"}\n',
    )
    for step in range(6):
        for tail in tails:
            path.write_bytes(whole + tail)
            StepsFile(path).on_start(tmp_path, recipe, step)
            assert path.read_bytes() == whole[: ends[step]], (step, tail[:20])
    damaged = whole.replace(b'{"iteration": 2,', b'{"iteration" 2,')
    path.write_bytes(damaged)
    StepsFile(path).on_start(tmp_path, recipe, 5)
    assert path.read_bytes() == damaged, "what comes after it is kept"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OutputError, match="no plain file"):
        StepsFile(path).on_start(tmp_path, recipe, 0)


def test_steps_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the lines is left that could not all be written."""
    file = StepsFile(tmp_path / "steps.jsonl")
    file.on_step({"iteration": 1})
    file.on_save()
    before = file.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskmed_zoo.runner.steps_file.os.fsync", full)
    file.on_step({"iteration": 2})
    with pytest.raises(
        OutputError, match=r"steps\.jsonl: cannot be written \(No space left on device; .* MiB are free"
    ):
        file.on_save()
    assert file.path.read_bytes() == before


def test_divergence_says_what_to_try_and_what_is_left(tmp_path: Path, tiny_recipe: Path) -> None:
    trainer = Trainer(load_recipe(tiny_recipe, {"train.amp": "bf16"}), torch.device("cpu"))
    error, run = NonFiniteError("step 7: loss is nan; 11 such steps in a row"), RunFolder(tmp_path / "run")
    words = f"{error}; training has diverged; begin anew with a lower train.optimizer.lr (0.003), a longer "
    words += "train.optimizer.warmup_iterations (2), a lower train.optimizer.gradient_clip (12) or train.amp=off; "
    assert str(diverged(error, trainer, run, 0)) == f"{words}no state was saved before"
    run.path.mkdir()
    run.state_file.touch()
    kept = f"{run.state_file} is of step 6"
    assert str(diverged(error, trainer, run, 6)) == f"{words}{kept}"
    run.weights_file("best").touch()
    assert str(diverged(error, trainer, run, 6)) == f"{words}{kept}, {run.weights_file('best')} are the best weights"
    trainer.dtype = None
    assert "(2) or a lower train.optimizer.gradient_clip (12); " in str(diverged(error, trainer, run, 6))


def test_a_run_that_diverges_ends_with_that(
    tmp_path: Path, dataset: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def breaks(self: Trainer, **batch: Any) -> dict[str, float]:
        if self.iteration >= 1:
            batch["image"] = torch.full_like(batch["image"], torch.nan)
        return step(self, **batch)

    monkeypatch.setattr(Trainer, "step", breaks)
    settings = {"train.epochs": 1, "train.max_skipped_steps": 0, "train.save_minutes": 0}
    notes = Notes()
    with pytest.raises(NonFiniteError) as caught:
        train(load_recipe(tiny_recipe, settings), data=dataset, out=tmp_path / "run", device="cpu", callbacks=[notes])
    assert str(caught.value).startswith("step 1: ")
    assert "; 1 such steps in a row; training has diverged; begin anew with " in str(caught.value)
    assert str(caught.value).endswith(f"; {tmp_path / 'run' / 'state_last.pt'} is of step 1")
    assert notes.told[-1] == ("end", caught.value)


def rows_of(epochs: int) -> list[dict[str, Any]]:
    return [
        {"epoch": e, "iterations": 3 * (e + 1), "loss": 1.5, "ce": 0.5, "dice": 1.0, "gradient_norm": 2.0, "skipped": 0,
         "lr_cnn": 1e-3, "validation_dice": 0.5, "validation_dice_average": 0.4, "validation_dice/left": 0.6,
         "seconds": 30.0, "cpu_seconds": 20.0, "data_seconds": 3.0}
        for e in range(epochs)
    ]  # fmt: skip


def test_the_picture_is_of_all_rows_and_takes_little_time(
    tmp_path: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were read from a file included; a hundred times as long as it took, it is not drawn again."""
    clock, drawn = [0.0], list[Any]()
    monkeypatch.setattr(progress_picture.time, "monotonic", lambda: clock[0])

    def draws(path: Path, title: str, curves: Any) -> None:
        clock[0] += 2
        drawn.append((title, curves))

    monkeypatch.setattr(progress_picture, "progress_figure", draws)
    rows: list[dict[str, Any]] = [{name: str(value) for name, value in row.items()} for row in rows_of(3)]
    rows[1]["validation_dice/left"] = rows[1]["loss"] = ""
    picture = ProgressPicture(tmp_path / "progress.png", rows)
    picture.on_start(tmp_path, load_recipe(tiny_recipe, {"train.epochs": 30}), 9)
    for row in rows_of(20)[3:]:
        rows.append(row)
        clock[0] += 30
        picture.on_epoch(row)
    epochs = [len(curves.losses["dice"]) for _, curves in drawn]
    assert epochs == [4, 11, 18], "200 s are not over before seven epochs"
    picture.on_end(None)
    title, curves = drawn[-1]
    assert title == "tiny: epoch 20 of 30, 30.0 s, 10 % waiting for patches"
    assert [epoch for epoch, _ in curves.losses["loss"]] == [1, *range(3, 21)]
    assert [*curves.losses] == ["loss", "ce", "dice"]
    assert [*curves.dice] == ["mean", "mean, smoothed"]
    assert curves.labels["left"][:2] == [(1, 0.6), (3, 0.6)]
    assert curves.rates["cnn"][-1] == (20, 1e-3)
    picture.on_end(None)
    assert len(drawn) == 4


def test_without_matplotlib_there_is_no_picture(made: tuple[RunFolder, Notes, Breaks, str], monkeypatch) -> None:
    run, *_ = made
    assert run.progress_picture.read_bytes().startswith(b"\x89PNG")
    trainer = Trainer(run.recipe(), torch.device("cpu"))
    watching = loop.Loop(trainer=trainer, run=run, parts={}, workers=0)
    for is_there in (True, False):
        monkeypatch.setattr(loop, "can_draw", lambda there=is_there: there)
        watch = watching.watched(Callback(), lambda _: None)
        assert [type(each) for each in watch.others] == [ProgressPicture] * is_there


def test_words_of_a_row() -> None:
    row = rows_of(1)[0]
    assert row_words.loss(row) == "loss 1.500 (ce 0.500, dice 1.000)"
    assert row_words.loss({"skipped": 3}) == "every step skipped"
    many = row | {f"validation_dice/organ {i:02d}": 0.9 - i / 100 for i in range(20)}
    assert row_words.dice(many) == (
        "validation Dice 0.500 (lowest of 21: left 0.600, organ 19 0.710, organ 18 0.720, organ 17 0.730)"
    )
    assert row_words.dice({"validation_dice": ""}) == row_words.dice({}) == ""
    assert row_words.pace({"seconds": "900", "data_seconds": ""}) == "15.0 min"
    assert [row_words.duration(s) for s in (7, 3661, 47 * 3600, 100 * 3600)] == [
        "0:00:07",
        "1:01:01",
        "47:00:00",
        "4 d 4 h",
    ]


def test_a_terminal_shows_a_bar_and_the_last_validation_under_it() -> None:
    out = io.StringIO()
    display = Display(PlainConsole(file=out, force_terminal=True, width=100, height=30))
    with training_display.training_display(display, 4, 3) as shown:
        shown.on_start(Path(), load_recipe("maskmed_phantom"), 3)
        first, second = rows_of(2)
        shown.on_epoch(first)
        shown.on_step({"iteration": 5})
        shown.on_epoch({name: value for name, value in second.items() if not name.startswith("validation")})
        shown.bar.refresh()
        assert shown.bar.tasks[0].completed == 5
    last = out.getvalue().rpartition("epoch 2/4")[2].splitlines()
    assert "42 %, 0:01:00 left" in last[0]
    assert "loss 1.500 (ce 0.500, dice 1.000), epoch 2" in last[1]
    assert "validation Dice 0.500 (left 0.600), epoch 1" in last[2]
