"""Runs cases of a target in a process of their own, and counts what must not happen.

A case is known by its target, the seed and its number; it has an empty folder for itself. The process says over its
standard output what came of each; one that says nothing for `HANG` seconds is killed and begun anew behind that case.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from random import Random
from threading import Thread
from typing import Any

from maskmed_zoo.errors import ZooError

HANG, MEMORY = 20.0, 2 * 2**30
"""Seconds that a case may take, and bytes that a process may hold, torch's libraries counted."""
GIVEN = "given"
"""In a case's folder: what the target puts there. Everything else is the package's, and gone if it refuses."""


@dataclass(frozen=True)
class Target:
    """A kind of input: `attempt(original, random, folder)` makes a hostile one in `folder` and has it read.

    `prepare` makes the originals once per process, in an empty folder.
    """

    name: str
    cases: int
    prepare: Callable[[Path], Any]
    attempt: Callable[[Any, Random, Path], object]


@dataclass
class Result:
    """What came of the cases of a target."""

    target: str
    seed: int
    counts: Counter[str] = field(default_factory=Counter[str])
    peak: int = 0
    faults: list[str] = field(default_factory=list[str])


def one(target: Target, original: Any, seed: int, number: int, folder: Path) -> str:
    """Read one case in `folder`, made and removed here: "read", "refused", or what was wrong with it."""
    random = Random(f"{seed}:{target.name}:{number}")
    (folder / GIVEN).mkdir(parents=True)
    try:
        target.attempt(original, random, folder)
    except ZooError as error:
        left = sorted(path.name for path in folder.iterdir() if path.name != GIVEN)
        if left:
            return f"leftover {left}"
        return "refused" if _is_fit_to_show(str(error)) else f"unfit message {str(error)[:300]!r}"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"raw {type(error).__name__}: {str(error)[:120]!r} in {Path(last.filename).name}:{last.lineno}"
    else:
        return "read"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_fit_to_show(message: str) -> bool:
    """Whether a message can stand on a terminal: something in it, no control characters, no endless line."""
    lines = message.split("\n")
    return bool(message.strip()) and all(line.isprintable() and len(line) < 3000 for line in lines)


def work(target: Target, seed: int, numbers: Iterable[int]) -> None:
    """The process: every case in turn, one line of JSON each."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        root = Path(place)
        (root / "originals").mkdir()
        original = target.prepare(root / "originals")
        for number in numbers:
            outcome = one(target, original, seed, number, root / "case")
            sys.stdout.write(json.dumps([number, outcome, _peak()]) + "\n")
            sys.stdout.flush()


def _peak() -> int:
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def campaign(target: Target, seed: int, cases: int, *, hang: float = HANG) -> Result:
    """`cases` cases in processes of their own; one that a case ends or hangs is followed by the next."""
    result, left = Result(target.name, seed), range(cases)
    while left:
        left = _process(result, left, hang)
    return result


def _process(result: Result, numbers: range, hang: float) -> range:
    """Run cases in one process until it ends; returns the cases that are left."""
    words = (result.target, "--work", f"{numbers.start}:{numbers.stop}", "--seed", str(result.seed))
    command, first = [sys.executable, "-m", "tests.fuzz", *words], numbers.start
    said: Queue[str] = Queue()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        reader = Thread(target=_listen, args=(process, said), daemon=True)
        reader.start()
        hung, limit = False, 120.0  # the first line comes after the imports and the originals
        try:
            while line := said.get(timeout=limit):
                number, outcome, peak = json.loads(line)
                _count(result, number, outcome, peak)
                first, limit = number + 1, hang
        except Empty:
            hung = True
            process.kill()
        code = process.wait()
        reader.join()
    if first < numbers.stop:
        _count(result, first, "hang" if hung else f"death, exit code {code}", 0)
        first += 1
    return range(first, numbers.stop)


def _listen(process: subprocess.Popen[str], said: Queue[str]) -> None:
    """Lines of the process as they come, and an empty one at the end."""
    for line in process.stdout or ():
        said.put(line)
    said.put("")


def _count(result: Result, number: int, outcome: str, peak: int) -> None:
    kind = outcome.split(" ", 1)[0].rstrip(",")
    if peak > MEMORY >= result.peak:
        result.counts["memory"] += 1
        result.faults.append(f"{result.target} {number}: {peak / 2**20:.0f} MiB")
    result.counts[kind] += 1
    result.peak = max(result.peak, peak)
    if kind not in ("read", "refused"):
        result.faults.append(f"{result.target} {number}: {outcome}")
