"""Standard output and error that are full, closed or no longer read: one line where there is a place for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = f"{sys.executable} -m maskmed_zoo"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full() -> None:
    done = shell(f"{COMMAND} list > /dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("standard output: cannot be written (No space left on device); ")
    assert shell(f"{COMMAND} describe no_such_name 2> /dev/full").returncode == 2


def test_closed_and_no_longer_read() -> None:
    for words in ("list >&-", "list >&- 2>&-", "list <&- >&- 2>&-"):
        done = shell(f"{COMMAND} {words}")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = shell(f"{COMMAND} schema | head -c 1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode in (0, 141), done.stdout, done.stderr) == (True, "{", "")
