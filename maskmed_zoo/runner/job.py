"""A job: one recipe on one fold, trained and scored in a process of its own, once, however often it is called for.

Idea: a process per run, so that a crash stays in its run and the peak memory is that of one network. Cells of an
ablation and folds of a study are jobs. Beside the run folder `NAME/` lie `NAME.lock`, held for as long as somebody
works on it, `NAME.log`, what the process said, and `NAME.failed`, in one line why it ended early.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from maskmed_zoo.errors import DataError, StoppedError, printable
from maskmed_zoo.evaluation.written import read_summary
from maskmed_zoo.files import read_text, unwritable
from maskmed_zoo.lock import holder
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.metrics_file import read_rows, trained_epochs
from maskmed_zoo.runner.resources import read_resources
from maskmed_zoo.runner.run_folder import RunFolder

TAIL = 2**16
"""Bytes of a log in which its last line is looked for."""


@dataclass(frozen=True)
class Job:
    """A run to train and score; `title` is what people know it by."""

    title: str
    recipe: Recipe
    run: RunFolder
    fold: int

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.recipe.train.seed

    @property
    def lock(self) -> Path:
        """Held by whoever works on it."""
        return self._beside("lock")

    @property
    def log(self) -> Path:
        """What its process said."""
        return self._beside("log")

    @property
    def failed(self) -> Path:
        """Why it ended early; there while nobody has begun it anew."""
        return self._beside("failed")

    def scores(self) -> dict[str, Any] | None:
        """`evaluation.json` of the whole training run; None where it is missing, cut off or of an earlier epoch."""
        scores = read_summary(self.run.evaluation_file)
        if scores is None or scores.get("weights") != "last":
            return None
        trained = scores.get("epochs") or self.trained()  # earlier versions did not write how many there were
        return scores if trained == self.run.whole(self.recipe.train.epochs) else None

    def epochs(self) -> list[dict[str, str]]:
        """The rows of `metrics.csv`, of which some may be lost."""
        return read_rows(self.run.metrics_file, self.recipe.train.iterations_per_epoch)

    def trained(self) -> int:
        """How many whole epochs `metrics.csv` tells of."""
        return trained_epochs(self.epochs())

    def resources(self) -> dict[str, Any]:
        """Peak memory of the training run, empty where it is not known."""
        return read_resources(self.run)

    def state(self) -> str:
        """Finished, running, failed, unfinished or new, in words."""
        worker = holder(self.lock)
        return f"running, {worker}" if worker is not None and self.scores() is None else self.progress()

    def progress(self) -> str:
        """The same as far as the files tell it; a job at work is unfinished or new."""
        if self.scores() is not None:
            return "finished"
        if self.failed.exists():
            return f"failed: {self._why()}"
        if not self.run.exists():
            return "new"
        return f"unfinished, {self.trained()} of {self.run.whole(self.recipe.train.epochs)} epochs"

    def _why(self) -> str:
        try:
            return printable(" ".join(read_text(self.failed).split())) or "nobody knows why"
        except DataError as error:
            return str(error)

    def _beside(self, suffix: str) -> Path:
        return self.run.path.with_name(f"{self.run.path.name}.{suffix}")


@dataclass(frozen=True)
class Task:
    """What all jobs of a call are made with."""

    data: tuple[str, ...]
    device: str | None = None
    workers: int | None = None
    init: Path | None = None


def order(job: Job, task: Task) -> dict[str, Any]:
    """The order to a job's process; JSON-able."""
    return {
        "recipe": job.recipe.model_dump(mode="json"),
        "out": str(job.run.path),
        "data": task.data,
        "fold": job.fold,
        "device": task.device,
        "workers": task.workers,
        "init": None if task.init is None else str(task.init),
    }


def run_in_process(job: Job, task: Task, lock: IO[str]) -> str | None:
    """Train and score in a child that holds `lock` too; returns None, or in one line why that failed.

    SIGTERM and SIGUSR1 are passed on to the child, which saves and ends; then `StoppedError` is raised.
    """
    command = [sys.executable, "-m", "maskmed_zoo.runner.job_process"]
    with _new(job.log) as log:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, pass_fds=(lock.fileno(),)
        )
        try:
            with _passed_on(child) as stopped:
                child.communicate(json.dumps(order(job, task)))
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    if stopped:
        raise StoppedError(f"{job.title}: stopped by {stopped[0].name}; the same command goes on", by=stopped[0].name)
    if child.returncode < 0:
        return f"ended by signal {-child.returncode} ({signal.Signals(-child.returncode).name}); see {job.log}"
    if child.returncode:
        return _last_line(job.log) or f"exit code {child.returncode}"
    return None if job.scores() is not None else f"ended without a whole {job.run.evaluation_file}; see {job.log}"


@contextmanager
def _passed_on(child: subprocess.Popen[str]) -> Generator[list[signal.Signals]]:
    """Send on to the child what schedulers send some time before they kill, so that it saves; the list fills with it.

    As signals are given to the main thread only, other threads pass nothing on.
    """
    noted: list[signal.Signals] = []

    def note(number: int, _: FrameType | None) -> None:
        noted.append(signal.Signals(number))
        child.send_signal(number)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _new(path: Path) -> IO[str]:
    """A new file in place of what was there, a link or not."""
    try:
        path.unlink(missing_ok=True)
        return path.open("x", encoding="utf-8")
    except OSError as error:
        raise unwritable(path, error) from error


def _last_line(path: Path) -> str:
    """The last line that says something, among the last of a text of any length."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        text = file.read().decode("utf-8", errors="replace")
    return next((printable(line.strip()) for line in reversed(text.split("\n")) if line.strip()), "")
