"""A lock between processes: one holder, free when it dies, kept by a child that outlives its parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskmed_zoo.errors import OutputError, UserError
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


@pytest.mark.parametrize("what", ["link", "dangling", "hard link", "somebody's file", "folder", "pipe", "NUL"])
def test_what_is_no_lock_is_left_alone(what: str, tmp_path: Path) -> None:
    """Neither followed, nor emptied, nor waited for."""
    other, path = tmp_path / "other", tmp_path / "cell.lock"
    other.write_text("pid 1 on somewhere, precious")
    if what == "link":
        path.symlink_to(other)
    elif what == "dangling":
        path.symlink_to(tmp_path / "none")
    elif what == "hard link":
        path.hardlink_to(other)
    elif what == "somebody's file":
        path.write_text("precious")
    elif what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path = tmp_path / "a\0b"
    with pytest.raises(OutputError) as caught, locked(path):
        pass
    assert str(caught.value).startswith(str(path).replace("\0", "\\x00"))
    assert "\n" not in str(caught.value)
    if what != "NUL":
        with pytest.raises(OutputError):
            holder(path)
    assert other.read_text() == "pid 1 on somewhere, precious"
    assert not (tmp_path / "none").exists()
    assert what != "somebody's file" or path.read_text() == "precious"


def test_a_lock_that_goes_with_its_holder(tmp_path: Path) -> None:
    """Whoever has opened the file before it was removed asks again."""
    path = tmp_path / "cell.lock"
    with locked(path, keep=False) as first:
        assert first is not None
    assert not path.exists()
    words = [
        sys.executable,
        "-c",
        HOLDS.replace("[1])", "[1]), wait=True, keep=False").replace("sleep(60)", "sleep(0)"),
    ]
    with locked(path, keep=False):
        waiting = [subprocess.Popen([*words, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for other in waiting:
        assert other.communicate()[0] == "held\n"
    assert not path.exists()


def test_a_damaged_text_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "cell.lock"
    with locked(path):
        path.write_bytes(b"pid \xff\xfe" * 9999)
        assert (holder(path) or "").startswith("pid ")
    assert holder(path) is None
