"""A lock between processes: one holder, free when it dies, kept by a child that outlives its parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskmed_zoo.errors import UserError
from maskmed_zoo.lock import holder, locked

HOLDS = """
import sys, time
from pathlib import Path
from maskmed_zoo.lock import locked
with locked(Path(sys.argv[1])) as lock:
    print("held" if lock else "busy", flush=True)
    time.sleep(60)
"""


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "cell.lock"
    assert holder(path) is None
    assert not path.exists()
    with locked(path) as first, locked(path) as second:
        assert first is not None
        assert second is None
        assert f"pid {os.getpid()} on " in (holder(path) or "")
    assert holder(path) is None


def test_what_a_killed_process_held_is_free(tmp_path: Path) -> None:
    path = tmp_path / "cell.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert f"pid {other.pid} on " in (holder(path) or "")
        other.kill()
        other.wait()
    with locked(path) as lock:
        assert lock is not None


def test_a_child_keeps_the_lock_of_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "cell.lock"
    with locked(path) as lock:
        assert lock is not None
        child = subprocess.Popen(["sleep", "60"], pass_fds=(lock.fileno(),))
    assert holder(path) is not None, "the parent let go, the child did not"
    child.kill()
    child.wait()
    assert holder(path) is None


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none/cell\.lock: cannot be written"), locked(tmp_path / "none" / "cell.lock"):
        pass
