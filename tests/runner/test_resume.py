"""A run that was interrupted anywhere ends as the one that was not: weights bit for bit, metrics but for times."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from maskmed_zoo import distributed, files
from maskmed_zoo.data.patches import Patch
from maskmed_zoo.errors import CheckpointError, OutputError, StoppedError
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.recipe.difference import what_trains
from maskmed_zoo.runner import pauses, session
from maskmed_zoo.runner.pauses import SIGNALS, Pauses, Turn
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.train import train
from maskmed_zoo.runner.trainer import Trainer, Validation
from tests.conftest import TINY, make_dataset
from tests.kill.harness import differences, flip, truncate
from tests.runner.test_watch import Notes

EPOCHS, STEPS = 3, 3
TOTAL = EPOCHS * STEPS


class DiesError(BaseException):
    """As by SIGKILL: nobody has foreseen it."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, a recipe that saves after every step, and the run that is left alone."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("resume")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "whole").mkdir()
    train(
        recipe_of(folder, {"train.save_minutes": 10}), data=make_dataset(folder / "data"), out=folder / "whole" / "run"
    )
    return folder


def recipe_of(made: Path, more: dict[str, Any] | None = None) -> Recipe:
    settings = {"train.epochs": EPOCHS, "train.iterations_per_epoch": STEPS, "train.save_minutes": 0}
    settings |= {"train.validate_every": 2, "train.validation_iterations": 2}
    return load_recipe(made / "tiny.yaml", settings | (more or {}))


def whole(made: Path) -> RunFolder:
    return RunFolder(made / "whole" / "run")


def go(made: Path, out: Path, **options: Any) -> RunFolder:
    recipe = options.pop("recipe", None) or recipe_of(made)
    return train(recipe, data=made / "data", out=out, device="cpu", **options)


def before_step(monkeypatch: pytest.MonkeyPatch, at: int, does: Callable[[], object]) -> None:
    """Do something before the step that begins after so many."""
    step = Trainer.step

    def stepped(self: Trainer, **batch: Any) -> dict[str, float]:
        if self.iteration == at:
            does()
        return step(self, **batch)

    monkeypatch.setattr(Trainer, "step", stepped)


def dies() -> None:
    raise DiesError


def cut(made: Path, out: Path, at: int, **options: Any) -> RunFolder:
    """A run that ended without notice when so many steps were made, each of them saved."""
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, at, dies)
        with pytest.raises(DiesError):
            go(made, out, resume=(out / "recipe.yaml").exists(), **options)
    return RunFolder(out)


@pytest.mark.parametrize("at", [0, 1, 3, 5, 8])
def test_cut_off_before_a_step(made: Path, tmp_path: Path, at: int) -> None:
    """In the middle of an epoch, at its border, before the first step and the last; and with a skipped step."""
    run = cut(made, tmp_path / "run", at)
    assert run.has_state() == (at > 0)
    if at:
        assert torch.load(run.state_file, weights_only=True)["iteration"] == at
    go(made, run.path, resume=True, workers=at % 2)
    assert differences(whole(made), run) == []


def test_cut_off_again_and_again_with_skipped_steps(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counts of skipped steps, in a row and in the epoch, go on where they were."""
    step = Trainer.step

    def skips(self: Trainer, **batch: Any) -> dict[str, float]:
        if self.iteration in (3, 4, 5, 7):
            batch["image"] = torch.full_like(batch["image"], torch.nan)
        return step(self, **batch)

    monkeypatch.setattr(Trainer, "step", skips)
    alone = go(made, tmp_path / "alone")
    run = cut(made, tmp_path / "run", 4)
    for at in (5, 7, 8):
        cut(made, run.path, at)
    assert torch.load(run.state_file, weights_only=True)["skipped_in_a_row"] == 1
    go(made, run.path, resume=True)
    assert differences(alone, run) == []
    assert [line.split(",")[0] for line in run.metrics_file.read_text().splitlines()] == ["epoch", "0", "1", "2"]


def test_callbacks_and_the_picture_go_on(made: Path, tmp_path: Path) -> None:
    """From the step of the state; what is told is told once, and warnings and lines of steps are those of one run."""
    run, notes = cut(made, tmp_path / "run", 5), Notes()
    assert [json.loads(line)["iteration"] for line in run.steps_file.read_text().splitlines()] == [1, 2, 3, 4, 5]
    before = run.progress_picture.read_bytes()
    go(made, run.path, resume=True, callbacks=[notes])
    assert notes.told[0] == ("start", "run", "tiny", 5)
    assert [values["iteration"] for _, values in (each for each in notes.told if each[0] == "step")] == [6, 7, 8, 9]
    assert [row["epoch"] for _, row in (each for each in notes.told if each[0] == "epoch")] == [1, 2]
    assert run.progress_picture.read_bytes() != before
    assert differences(whole(made), run) == []


PLACES = ["weights_best.safetensors", "weights_last.safetensors", "metrics.csv", "state_previous.pt", "state_last.pt"]


@pytest.mark.parametrize("place", PLACES)
def test_cut_off_between_the_files_of_a_checkpoint(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Of the second epoch, the first whose weights are the best known for their score."""
    replace, is_due = Path.replace, list[bool]()

    def put(self: Path, target: Path) -> Path:
        if is_due and Path(target).name == place:
            raise DiesError
        return replace(self, target)

    by_epoch = recipe_of(made, {"train.save_minutes": 10})
    with monkeypatch.context() as patch:
        before_step(patch, 2 * STEPS - 1, lambda: is_due.append(True))
        patch.setattr(Path, "replace", put)
        with pytest.raises(DiesError):
            go(made, tmp_path / "run", recipe=by_epoch)
    run = go(made, tmp_path / "run", resume=True)
    assert differences(whole(made), run) == []


@pytest.mark.parametrize("how", [truncate, flip])
def test_a_damaged_state_falls_back_to_the_one_before(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: Callable[..., None]
) -> None:
    for seed in range(2):
        run = cut(made, tmp_path / f"run{seed}", 5)
        whole_state = run.state_file.read_bytes()
        how(run.state_file, Random(seed))
        capsys.readouterr()
        go(made, run.path, resume=True)
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"{run.state_file}: ")]
        assert len(said) == 1
        assert said[0].endswith("training goes on from state_previous.pt, which is at step 4")
        assert (run.path / "state_damaged.pt").stat().st_size <= len(whole_state)
        assert differences(whole(made), run) == []


def test_a_state_without_its_checksum_is_cut_off(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By exactly as many bytes as the checksum has; an archive is whole without them."""
    run = cut(made, tmp_path / "run", 5)
    run.state_file.write_bytes(run.state_file.read_bytes()[:-64])
    go(made, run.path, resume=True)
    assert f"{run.state_file}: cut off, or no state of a training run; training goes on" in capsys.readouterr().err
    assert differences(whole(made), run) == []


def test_the_whole_one_is_not_overwritten_by_the_damaged(made: Path, tmp_path: Path) -> None:
    """Cut off in the first checkpoint after the fall back, between the two states."""
    run = cut(made, tmp_path / "run", 5)
    truncate(run.state_file, Random(0))
    before = run.previous_state_file.read_bytes()
    replace = Path.replace

    def put(self: Path, target: Path) -> Path:
        if Path(target).name == "state_last.pt":
            raise DiesError
        return replace(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", put)
        with pytest.raises(DiesError):
            go(made, run.path, resume=True)
    assert run.previous_state_file.read_bytes() == before
    go(made, run.path, resume=True)
    assert differences(whole(made), run) == []


def test_two_damaged_states_are_one_line(made: Path, tmp_path: Path) -> None:
    run = cut(made, tmp_path / "run", 5)
    for path in (run.state_file, run.previous_state_file):
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(
        CheckpointError, match=r"state_last\.pt: cannot be continued from \(.*; state_previous\.pt: "
    ) as e:
        go(made, run.path, resume=True)
    assert "\n" not in str(e.value)


def test_a_state_of_an_earlier_version(made: Path, tmp_path: Path) -> None:
    """One file, of a whole epoch, without a checksum."""
    run = cut(made, tmp_path / "run", 3)
    state = torch.load(run.state_file, weights_only=True)
    del state["begun"]
    torch.save(state, run.state_file)
    run.previous_state_file.unlink()
    go(made, run.path, resume=True)
    assert differences(whole(made), run) == []


def test_nothing_depends_on_what_was_drawn_before(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generators are left anywhere before every step and every validation; points of the loss and patches are drawn."""
    step, validate, seeds = Trainer.step, Trainer.validate, iter(range(1, 99))

    def elsewhere() -> None:
        seed = next(seeds)
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    def stepped(self: Trainer, **batch: Any) -> dict[str, float]:
        elsewhere()
        return step(self, **batch)

    def validated(self: Trainer, batches: Iterable[Patch]) -> Validation:
        elsewhere()
        return validate(self, batches)

    points = recipe_of(made, {"model.loss": {"kind": "set_criterion", "points": 64}, "model.head.dropout": 0.3})
    alone = go(made, tmp_path / "alone", recipe=points)
    monkeypatch.setattr(Trainer, "step", stepped)
    monkeypatch.setattr(Trainer, "validate", validated)
    assert differences(alone, go(made, tmp_path / "run", recipe=points)) == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_saves_after_the_step(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    number = signal.Signals[name]
    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patch:
        before_step(patch, 4, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt if name == "SIGINT" else StoppedError) as caught:
            go(made, tmp_path / "run", recipe=recipe_of(made, {"train.save_minutes": 10}), workers=1)
    run = RunFolder(tmp_path / "run")
    line = f"{run.path}: saved after 5 of 9 steps, stopped by {name}; go on with --resume (resume=True in Python)"
    assert str(caught.value) == line
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert torch.load(run.state_file, weights_only=True)["iteration"] == 5
    (interruption,) = run.manifest()["interruptions"]
    assert (interruption["step"], interruption["by"]) == (5, name)
    go(made, run.path, resume=True)
    assert differences(whole(made), run) == []


@pytest.mark.parametrize(("validation", "step"), [(0, 6), (1, 9)])
def test_a_signal_while_validating(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: int, step: int
) -> None:
    """The epoch's steps are kept, its validation is done again; also after the last step of all."""
    validate, calls = Trainer.validate, iter(range(9))

    def told(self: Trainer, batches: Iterable[Patch]) -> Validation:
        def first_then_signal() -> Iterator[Patch]:
            for number, batch in enumerate(batches):
                if number == 0 and next(calls) == validation:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return validate(self, first_then_signal())

    by_epoch = recipe_of(made, {"train.save_minutes": 10})
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", told)
        with pytest.raises(StoppedError, match=f"saved after {step} of 9 steps"):
            go(made, tmp_path / "run", recipe=by_epoch)
    run = go(made, tmp_path / "run", resume=True, workers=1)
    assert differences(whole(made), run) == []


def test_a_signal_while_the_last_epoch_is_saved_keeps_evaluation_from_beginning(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = RunFolder.save_weights

    def told(self: RunFolder, *arguments: Any, **options: Any) -> None:
        if options["epochs"] == EPOCHS:
            os.kill(os.getpid(), signal.SIGTERM)
        save(self, *arguments, **options)

    monkeypatch.setattr(RunFolder, "save_weights", told)
    with pytest.raises(StoppedError, match="all 3 epochs are trained and saved, stopped by SIGTERM"):
        go(made, tmp_path / "run")
    assert differences(whole(made), RunFolder(tmp_path / "run")) == []


def test_the_same_signal_again_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not the copy of it that `timeout` and schedulers send to a process and to its group, nor another one."""
    seen: list[int] = []
    monkeypatch.setattr(pauses, "AT_ONCE", 1e9)
    old = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with Pauses(10) as asked:
            assert asked.ask() is Turn.GO_ON
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
            assert asked.ask() is Turn.STOP
            assert seen == []
            monkeypatch.setattr(pauses, "AT_ONCE", -1.0)
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [signal.SIGTERM]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert isinstance(asked.stop("x"), StoppedError), "the first one counts"
    finally:
        signal.signal(signal.SIGTERM, old)


@pytest.mark.parametrize(("does", "waits"), [("raise", 0), ("stop", 2)])
def test_processes_wait_for_each_other_where_all_stop(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, waits: int
) -> None:
    """For the state to be saved, and for all to end; not where this one alone is interrupted, whatever is said."""
    waited: list[None] = []

    def interrupts() -> None:
        if does == "raise":
            raise KeyboardInterrupt("a second time")
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(distributed, "wait", lambda: waited.append(None))
    before_step(monkeypatch, 0, interrupts)
    with pytest.raises(KeyboardInterrupt):
        go(made, tmp_path / "run", recipe=recipe_of(made, {"train.save_minutes": 10}))
    assert len(waited) == waits


def test_a_signal_that_ends_at_once_is_noted_by_its_words(made: Path, tmp_path: Path) -> None:
    """What is raised then has a class of nobody's concern."""

    class EndedError(BaseException):
        pass

    def ends() -> None:
        raise EndedError("ended by SIGTERM")

    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 1, ends)
        with pytest.raises(EndedError):
            go(made, tmp_path / "run")
    (interruption,) = RunFolder(tmp_path / "run").manifest()["interruptions"]
    assert interruption["by"] == "ended by SIGTERM"


def test_signals_are_left_alone_outside_the_main_thread(made: Path, tmp_path: Path) -> None:
    before, seen = [signal.getsignal(each) for each in SIGNALS], list[list[Any]]()

    def trains() -> None:
        with Pauses(10) as asked:
            seen.append([signal.getsignal(each) for each in SIGNALS])
            assert asked.ask() is Turn.GO_ON

    thread = threading.Thread(target=trains)
    thread.start()
    thread.join()
    assert seen == [before]


def test_states_come_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the step that would end too late."""
    clock = [0.0]
    monkeypatch.setattr(pauses.time, "monotonic", lambda: clock[0])
    turns: list[tuple[float, Turn]] = []
    with Pauses(1) as asked:
        for _ in range(30):
            clock[0] += 7
            turns.append((clock[0], asked.ask()))
            if turns[-1][1] is Turn.SAVE:
                with asked.saving():
                    clock[0] += 20  # which takes time
    assert [at for at, turn in turns if turn is Turn.SAVE] == [56, 111, 166, 221, 276]


def test_how_often_is_no_other_training(made: Path, tmp_path: Path) -> None:
    run = cut(made, tmp_path / "run", 4)
    other = recipe_of(made, {"train.save_minutes": 7.5})
    assert what_trains(other) == what_trains(recipe_of(made))
    go(made, run.path, recipe=other, resume=True)
    assert run.recipe().train.save_minutes == 7.5
    assert "save_minutes" not in json.dumps(what_trains(other))


def test_what_a_killed_process_left_unfinished_is_removed(made: Path, tmp_path: Path) -> None:
    """Of the files that training alone writes, however young; not somebody else's."""
    run = cut(made, tmp_path / "run", 2)
    names = [f"{files.UNFINISHED}0-{path.name[-20:]}" for path in run.trained_files]
    for name in (*names, other := f"{files.UNFINISHED}0-evaluation.json"):
        (run.path / name).touch()
    go(made, run.path, resume=True)
    assert [path.name for path in run.path.glob(f"{files.UNFINISHED}*")] == [other]


def test_the_manifest_tells_how_a_run_was_trained(made: Path, tmp_path: Path) -> None:
    manifest = whole(made).manifest()
    assert manifest["interruptions"] == []
    assert manifest["session"] is None
    assert manifest["processes"] == 1
    assert re.fullmatch("[0-9a-f]{64}", manifest["data_hash"])
    assert manifest["peak_memory_bytes"] > 2**20
    run = cut(made, tmp_path / "run", 4)
    first = run.manifest()
    assert first["interruptions"][0]["by"].startswith("DiesError")
    (run.path / "manifest.json").write_text(json.dumps(first | {"interruptions": [], "session": {
        "started": "then", "time": "2026-11-30T12:00:00+00:00", "step": 4}}))  # as after SIGKILL  # fmt: skip
    go(made, run.path, resume=True)
    last = run.manifest()
    assert last["interruptions"] == [
        {"time": "2026-11-30T12:00:00+00:00", "step": 4, "by": "killed, or its machine went down"}
    ]
    assert last["seconds"] > first["seconds"] > 0
    assert last["cpu_seconds"] > first["cpu_seconds"] > 0
    assert last["data_hash"] == manifest["data_hash"]
    assert {key: last[key] for key in ("seed", "fold", "training", "data")} == {
        key: first[key] for key in ("seed", "fold", "training", "data")
    }


@pytest.mark.parametrize(
    "damage", [{"seconds": "x"}, {"seconds": 10**400}, {"interruptions": [3]}, {"session": []}, {"memory": 5}]
)
def test_a_history_that_cannot_be_read_breaks_no_run(made: Path, tmp_path: Path, damage: dict[str, Any]) -> None:
    shutil.copytree(whole(made).path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    manifest = run.manifest() | damage
    run.manifest_file.write_text(json.dumps(manifest))
    longer = recipe_of(made, {"train.epochs": EPOCHS + 1})
    run.write_recipe(longer)
    go(made, run.path, recipe=longer, resume=True)
    assert run.manifest()["seconds"] > 0
    assert run.manifest()["interruptions"] == []


def test_a_manifest_that_cannot_be_written_breaks_no_run(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut(made, tmp_path / "run", 2)
    before = run.manifest_file.read_bytes()

    def full(*_: object) -> None:
        raise OutputError("no space")

    monkeypatch.setattr(session, "write_json", full)
    go(made, run.path, resume=True)
    assert run.manifest_file.read_bytes() == before
    assert differences(whole(made), run) == []
