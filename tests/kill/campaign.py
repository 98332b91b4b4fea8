"""The kinds of interruptions, on a run of a few cases whose epochs take seconds."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import yaml

from tests.conftest import TINY, make_dataset
from tests.kill.harness import CUTS, FULL, Sessions, after, flip, killed_before, truncate

CASES = 6
REAL = {"channels": None, "labels": None, "spacing": [1, 1, 1], "patch_size": [16, 24, 16], "mirror_axes": []}
DISK = 4 * 2**20
"""Bytes of the disk that is filled."""


class SkippedError(Exception):
    """A kind of interruption that cannot be made here."""


@dataclass(frozen=True)
class Plan:
    """What every run of a campaign trains, how many steps it has, and the seconds between two states."""

    recipe: Path
    data: Path
    steps: int
    save_seconds: float


def prepare(folder: Path, data: Path | None, *, epochs: int = 6, steps: int = 40, save_seconds: float = 3.0) -> Plan:
    """A recipe, and a data set of a few cases of `data`, or a made-up one."""
    recipe = yaml.safe_load(TINY)
    recipe["train"] |= {"epochs": epochs, "iterations_per_epoch": steps, "save_minutes": save_seconds / 60}
    root = folder / "Dataset001_Few"
    if data is None:
        make_dataset(root)
    else:
        recipe["data"] |= REAL
        _few(data, root)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return Plan(folder / "tiny.yaml", root, epochs * steps, save_seconds)


def _few(data: Path, root: Path) -> None:
    """Links to the first cases of a data set."""
    description = json.loads((data / "dataset.json").read_text())
    ending = description["file_ending"]
    labels = sorted((data / "labelsTr").glob(f"*{ending}"))[:CASES]
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
        for label in labels:
            for path in (data / part).glob(f"{label.name.removesuffix(ending)}*"):
                (root / part / path.name).symlink_to(path.resolve())
    names = [label.name.removesuffix(ending) for label in labels]
    (root / "splits_final.json").write_text(json.dumps([{"train": names[1:], "val": names[:1]}]))
    (root / "dataset.json").write_text(json.dumps(description | {"numTraining": len(names)}))


def sigkill(run: Sessions, seed: int, steps: int, times: int = 20) -> None:
    """Killed at random moments, every other time with a loader process, which outlives it for a while."""
    random = Random(seed)
    for number in range(times):
        made, later = random.randint(1, max(1, 3 * steps // (2 * times) - 2)), random.uniform(0, 0.5)
        run.session("SIGKILL", after(made, signal.SIGKILL, later), workers=number % 2)


def told(run: Sessions, seed: int, steps: int) -> None:
    """Told to stop: nothing is lost."""
    random = Random(seed)
    for number in (*[signal.SIGTERM] * 5, signal.SIGUSR1, signal.SIGINT):
        made, later = random.randint(1, steps // 8), random.uniform(0, 0.5)
        ended = run.session(number.name, after(made, number, later), workers=1)
        expected = 130 if number == signal.SIGINT else 143
        if ended.code != expected or "go on with --resume" not in ended.said.splitlines()[-1]:
            raise AssertionError(ended.said)


def between(run: Sessions, seed: int, steps: int) -> None:
    """Killed between the files of a checkpoint, at each of its borders."""
    for how, name in CUTS.items():
        run.session(how, within=killed_before(name))


def damaged(run: Sessions, seed: int, steps: int) -> None:
    """Killed, and the newest state is damaged on the disk."""
    random, states = Random(seed), (run.run.state_file, run.run.previous_state_file)

    def has_two() -> bool:
        return all(state.exists() for state in states)

    for how in (truncate, flip, truncate):
        killed = after(random.randint(steps // 10, steps // 5), signal.SIGKILL, until=has_two)
        run.session(f"SIGKILL, then {how.__name__}", killed)
        how(run.run.state_file, random)


def full_disk(run: Sessions, seed: int, steps: int) -> None:
    """A disk that another process fills while training goes on."""
    with _disk(run.run.path):
        filler = run.run.path / ".filler"

        def fill(pid: int, made: Callable[[], int]) -> None:
            while not run.run.state_file.exists():
                time.sleep(0.01)
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(2**12))

        ended = run.session("full disk", fill)
        filler.unlink()
        line = ended.said.splitlines()[-1]
        if ended.code != FULL or "No space left" not in line or [*run.run.path.glob(".partial-*")]:
            raise AssertionError(ended.said)
        whole = run.run.path.with_name("copied")
        run.finish()
        shutil.copytree(run.run.path, whole)
    shutil.copytree(whole, run.run.path, dirs_exist_ok=True)


@contextmanager
def _disk(path: Path) -> Generator[None]:
    path.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", path], check=False)
    if done.returncode:
        raise SkippedError("no small disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def short(run: Sessions, seed: int, steps: int) -> None:
    """Some of each, on a run that saves after every step."""
    random = Random(seed)
    for number in range(2):
        run.session("SIGKILL", after(random.randint(2, 4), signal.SIGKILL, random.uniform(0, 0.05)), workers=number)
    run.session("between", within=killed_before(random.choice([*CUTS.values()])))
    run.session("SIGKILL, then truncate", after(2, signal.SIGKILL))
    truncate(run.run.state_file, random)


KINDS: dict[str, Callable[[Sessions, int, int], None]] = {
    "SIGKILL": sigkill,
    "told to stop": told,
    "between files": between,
    "damaged": damaged,
    "full disk": full_disk,
}
