"""How much memory there is, and which errors say that there is not enough."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from maskmed_zoo import memory
from maskmed_zoo.errors import MemoryShortageError


def test_available_is_what_the_machine_or_its_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = memory.available()
    assert there is not None
    assert 2**20 < there < 2**50
    for name, content in (("current", "3000"), ("stat", "anon 1\ninactive_file 500\nfile 7"), ("max", "4000")):
        (tmp_path / f"memory.{name}").write_text(content)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available() == 1500
    memory.check_available(1500, "x")
    with pytest.raises(MemoryShortageError, match=r"^x needs 0\.0 GiB of memory, there are 0\.0; free some, crop"):
        memory.check_available(1501, "x")
    (tmp_path / "memory.max").write_text("max\n")
    unlimited = memory.available()
    assert unlimited is not None
    assert unlimited > 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")
def test_what_was_freed_goes_back_to_the_system() -> None:
    """In a process of its own: every second of many small blocks is freed, so that the heap cannot shrink."""
    code = """
import sys
from maskmed_zoo.memory import give_back
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS:"))
blocks = [bytearray(60_000) for _ in range(4000)]
del blocks[::2]
before = resident()
give_back()
print(before - resident())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 80_000  # kB, of 120,000


def test_real_errors_of_numpy_and_torch_are_known() -> None:
    for allocate in (lambda: np.empty(2**50, np.uint8), lambda: torch.empty(2**55, dtype=torch.uint8)):
        with (
            pytest.raises(MemoryShortageError, match=r"^x: it needs more memory than there is \(") as caught,
            memory.within_memory("x: it"),
        ):
            allocate()
        assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="shape"), memory.within_memory("x: it"):
        torch.matmul(torch.ones(2, 2), torch.ones(3, 3))
    assert not memory.is_exhausted(ValueError("out of memory"))
