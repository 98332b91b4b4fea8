"""What the benchmark scripts share: candidates timed in turn, peak memory in fresh processes, the machine in words."""

from __future__ import annotations

import csv
import ctypes
import datetime
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


def machine() -> Row:
    """Processor, threads, versions and date."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    wide = any("avx512f" in line for line in lines)
    return {
        "machine": f"{model}, {'AVX-512' if wide else 'no AVX-512'}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }


def in_turn(candidates: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Milliseconds of every call; each round runs every candidate once, the first round is thrown away."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repetitions + 1):
        for name, call in candidates.items():
            gc.collect()
            start = time.perf_counter()
            call()
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each list."""
    return {name: statistics.median(values) for name, values in times.items()}


def peak(call: Callable[[], object]) -> float:
    """MB of memory that `call` needed at its highest beyond what was there before; Linux."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    kept = call()
    high = _status("VmHWM")
    del kept
    return (high - before) / 1e3


def _status(name: str) -> int:
    """A field of this process's status, kB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def in_fresh_process(script: str, *words: str) -> Any:
    """What `script`, called with `words`, prints as JSON in its last line."""
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(words)} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write(path: Path, rows: Iterable[Row]) -> None:
    """Rows of the same keys as CSV."""
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows of the same keys to a CSV, which is begun where it is not there."""
    rows, is_new = list(rows), not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
