"""Sessions of a training run, each ended in some way, and what came of the run."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file

from maskmed_zoo.cli.main import main
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.trainer import Trainer

TIMES = {"seconds", "cpu_seconds", "data_seconds"}
CUTS = {
    "before the last weights": "weights_last.safetensors",
    "before metrics.csv": "metrics.csv",
    "before the old state is moved": "state_previous.pt",
    "between the two states": "state_last.pt",
    "before the manifest": "manifest.json",
}
"""Where a run is killed within a checkpoint, by the file that would have been put in place next."""
PATIENCE = 600.0
FULL = 2
"""Exit code of a session that goes on until it wants to write on a full disk."""


@dataclass
class Ended:
    """A session: how it was ended, its exit code, and the moments at which its steps began and were made."""

    how: str
    code: int
    at: float
    steps: list[tuple[int, float, float]]
    said: str

    @property
    def done(self) -> int:
        """Steps of the run that were made at its end."""
        return self.steps[-1][0]


@dataclass
class Sessions:
    """One run in a folder of its own, trained by one process after the other."""

    folder: Path
    recipe: Path
    data: Path
    ended: list[Ended] = field(default_factory=list[Ended])

    @property
    def run(self) -> RunFolder:
        """What they train."""
        return RunFolder(self.folder / "run")

    def session(
        self, how: str, interrupt: Callable[[int, Callable[[], int]], None] | None = None,
        *, workers: int = 0, within: Callable[[], None] | None = None,
    ) -> Ended:  # fmt: skip
        """Begin or resume, let `interrupt(pid, steps made by now)` act, and wait for the end.

        `within` is called in the process before it trains.
        """
        self.folder.mkdir(exist_ok=True)
        log, steps = (self.folder / f"{len(self.ended):02d}.{name}" for name in ("log", "steps"))
        words = ["train", str(self.recipe), "--data", str(self.data), "--out", str(self.run.path), "--device", "cpu"]
        words += ["--workers", str(workers), *(["--resume"] if self.run.exists() else [])]
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            _train(words, log, steps, within)
        if interrupt is not None:
            interrupt(pid, lambda: len(_steps(steps)))
        sent = time.monotonic()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        at = sent if interrupt is not None and code != FULL else time.monotonic()
        self.ended.append(Ended(how, code, at, _steps(steps), log.read_text()))
        return self.ended[-1]

    def finish(self) -> None:
        """Train to the end."""
        last = self.session("left alone")
        if last.code:
            raise AssertionError(last.said)

    def lost(self, number: int) -> tuple[int, float]:
        """Steps and seconds of work that the interruption of a session cost."""
        ended, first = self.ended[number], self.ended[number + 1].steps[0][0] - 1
        made = [made for step, _, made in ended.steps if step == first]
        since = made[0] if made else ended.steps[0][1]  # what it went on from was saved by an earlier session
        return ended.done - first, max(0.0, ended.at - since)

    def longest_step(self, number: int) -> float:
        """Seconds that a step of a session took at most, with what was written after it."""
        steps = self.ended[number].steps
        ends = [after - before for (_, _, before), (_, _, after) in pairwise(steps)]
        return max((*ends, *(made - begun for _, begun, made in steps)))


def _train(words: list[str], log: Path, steps: Path, within: Callable[[], None] | None) -> None:
    """In the new process, which does not return."""
    code = 70
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        noted, step = os.open(steps, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), Trainer.step

        def told(self: Trainer, *args: object, **batch: object) -> dict[str, float]:
            begun = time.monotonic()
            values = step(self, *args, **batch)  # pyright: ignore[reportArgumentType]
            os.write(noted, f"{self.iteration} {begun} {time.monotonic()}\n".encode())
            return values

        Trainer.step = told  # pyright: ignore[reportAttributeAccessIssue]
        if within is not None:
            within()
        code = main(words)
        sys.stderr.flush()
    finally:
        os._exit(code)


def _steps(path: Path) -> list[tuple[int, float, float]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(step), float(begun), float(made)) for step, begun, made in map(str.split, lines)]


def after(
    steps: int, number: signal.Signals, later: float = 0.0, *, until: Callable[[], bool] = lambda: True
) -> Callable[[int, Callable[[], int]], None]:
    """Send a signal so many seconds after so many steps of a session, and not before `until` is true."""

    def interrupt(pid: int, made: Callable[[], int]) -> None:
        end = time.monotonic() + PATIENCE
        while (made() < steps or not until()) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(later)
        os.kill(pid, number)

    return interrupt


def killed_before(name: str) -> Callable[[], None]:
    """Die by SIGKILL instead of putting a file of that name in place, in the first checkpoint after a step."""

    def within() -> None:
        replace, step, is_begun = Path.replace, Trainer.step, [False]

        def stepped(self: Trainer, *args: object, **batch: object) -> dict[str, float]:
            is_begun[0] = True
            return step(self, *args, **batch)  # pyright: ignore[reportArgumentType]

        def put(self: Path, target: Path) -> Path:
            if is_begun[0] and Path(target).name == name:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        Trainer.step, Path.replace = stepped, put  # pyright: ignore[reportAttributeAccessIssue]

    return within


def truncate(path: Path, random: Random) -> None:
    """Cut a file off somewhere."""
    os.truncate(path, random.randrange(path.stat().st_size))


def flip(path: Path, random: Random) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def differences(one: RunFolder, other: RunFolder) -> list[str]:
    """In what two runs differ that are to be the same."""
    found: list[str] = []
    for which in ("last", "best"):
        ours, theirs = load_file(one.weights_file(which)), load_file(other.weights_file(which))
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
            found.append(f"{which} weights")
    rows = [list(csv.DictReader(run.metrics_file.read_text().splitlines())) for run in (one, other)]
    kept = [[{key: value for key, value in row.items() if key not in TIMES} for row in table] for table in rows]
    if kept[0] != kept[1] or [*rows[0][0]] != [*rows[1][0]]:
        found.append("metrics.csv")
    steps = [[json.loads(line) for line in run.steps_file.read_text().splitlines()] for run in (one, other)]
    made = [[{key: value for key, value in line.items() if key not in TIMES} for line in lines] for lines in steps]
    config = one.recipe().train
    planned = range(1, one.whole(config.epochs) * config.iterations_per_epoch + 1)
    if made[0] != made[1] or [line["iteration"] for line in steps[0]] != [*planned]:
        found.append("steps.jsonl")
    return found
