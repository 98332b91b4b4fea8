"""`predict` that is killed while it writes, shares a folder, or meets what it cannot use, beside one left alone.

    python -m tests.kill.predicting

Each session is a process of its own, forked from one that has imported everything. Label maps and probabilities of ten
images are compared byte for byte, and which cases were computed by whom is counted: nothing lost, nothing half-written,
nothing done twice. Returns 1 if something is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from maskmed_zoo.cli.main import main as command
from maskmed_zoo.data.formats import nifti
from maskmed_zoo.data.predicted import FORMS, STAMP, PredictedFolder, files_of
from maskmed_zoo.inference.pipeline import _Pass
from tests.conftest import make_dataset

RUN = Path(__file__).parents[1] / "runner" / "earlier_run"
CASES, TIMES = 10, 20
Hook = Callable[[], None]


@dataclass
class Folder:
    """Images, and an output of them."""

    images: Path
    out: Path

    def targets(self) -> list[Path]:
        """The label maps that there are to be."""
        return [self.out / path.name.replace("_0000", "") for path in sorted(self.images.iterdir())]

    def begin(self, *hooks: Hook) -> int:
        """Start a process that predicts, after calling `hooks` there; returns its pid."""
        words = ["predict", str(RUN), str(self.images), str(self.out), "--device", "cpu", "--probabilities", "--npz"]
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            _predict(words, self.out.with_suffix(f".{os.getpid()}"), hooks)
        return pid

    def end(self, pid: int) -> tuple[int, list[str], str]:
        """Wait for a process: its exit code, the cases it has computed, and what it said."""
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        base = self.out.with_suffix(f".{pid}")
        log, noted = base.with_name(f"{base.name}.log"), base.with_name(f"{base.name}.cases")
        return code, noted.read_text().split(), log.read_text()

    def session(self, *hooks: Hook) -> tuple[int, list[str], str]:
        """A process from its start to its end."""
        return self.end(self.begin(*hooks))

    def finished(self) -> dict[str, bytes]:
        """What stands in the folder of the cases that are there, by name; the others' files are in no one's way."""
        found: dict[str, bytes] = {}
        for target in self.targets():
            if target.exists():
                found |= {path.name: path.read_bytes() for path in files_of(target, with_instances=False,
                                                                             probabilities=FORMS)}  # fmt: skip
        return found


def _predict(words: list[str], base: Path, hooks: tuple[Hook, ...]) -> None:
    """In the new process, which does not return."""
    code = 70
    try:
        log = os.open(base.with_name(f"{base.name}.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        noted = os.open(base.with_name(f"{base.name}.cases"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        computed = _Pass._computed

        def told(self: _Pass, job: Any, image: Any) -> Any:
            os.write(noted, f"{job.case.identifier}\n".encode())
            return computed(self, job, image)

        _Pass._computed = told  # pyright: ignore[reportAttributeAccessIssue]
        for hook in hooks:
            hook()
        code = command(words)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def killed_in_write(at: int) -> Hook:
    """Die by SIGKILL at the so many-th step of writing: in the middle of a file, or before one is put in place."""

    def hook() -> None:
        steps = [0]

        def step() -> bool:
            steps[0] += 1
            return steps[0] == at

        replace, write, fsync = Path.replace, nifti.write, os.fsync

        def put(self: Path, target: Path) -> Path:
            if step():
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        def half(path: Path, *arguments: Any) -> None:
            write(path, *arguments)
            if step():
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        def synced(descriptor: int) -> None:
            if step():
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        Path.replace, nifti.write, os.fsync = put, half, synced  # type: ignore[method-assign]

    return hook


def check(*, holds: bool, what: str) -> None:
    """Raise `AssertionError` that says what does not hold."""
    if not holds:
        raise AssertionError(what)


def compare(whole: Folder, other: Folder, *, missing: frozenset[str] = frozenset()) -> None:
    """The same files, and the same in the record, as of the folder left alone; nothing else in it."""
    expected = {name: content for name, content in whole.finished().items() if name.split(".")[0][:7] not in missing}
    check(holds=other.finished() == expected, what=f"{other.out}: other files than when left alone")
    seen = {path.name for path in other.out.iterdir() if not path.name.startswith(".")}
    check(holds=seen == set(expected), what=f"{other.out}: further files: {seen - set(expected)}")
    check(holds=not [*other.out.glob(".predicting-*.lock")], what=f"{other.out}: a claim is left")
    ours, theirs = (json.loads((folder.out / STAMP).read_text()) for folder in (other, whole))
    names = {f"{name}.nii.gz" for name in missing}
    kept = {table: {key: value for key, value in theirs[table].items() if key not in names}
            for table in ("weights_sha256", "settings")}  # fmt: skip
    check(holds={table: ours[table] for table in kept} == kept, what=f"{other.out}: another record")
    check(holds="replacing" not in ours, what=f"{other.out}: something is announced still")


def mid_write(whole: Folder, other: Folder, times: int, seed: int) -> str:
    """Killed again and again within a write."""
    random, computed = Random(seed), list[str]()
    for _ in range(times):
        before = other.finished()
        code, cases, said = other.session(killed_in_write(random.randint(1, 30)))
        if not code:
            break
        check(holds=code == -signal.SIGKILL, what=said)
        after = other.finished()
        wrong = [name for name, content in before.items() if after.get(name) != content]
        check(holds=not wrong, what=f"changed, though finished before: {wrong}")
        whole_files = whole.finished()
        half = [name for name, content in after.items() if whole_files[name] != content]
        check(holds=not half, what=f"half-written: {half}")
        again = [case for case in cases if f"{case}.nii.gz" in before]
        check(holds=not again, what=f"done twice: {again}")
        computed += cases
    code, cases, said = other.session()
    check(holds=code == 0, what=said)
    compare(whole, other)
    return f"{times} times, {len([*computed, *cases])} cases computed for {CASES}"


def two_at_once(whole: Folder, other: Folder) -> str:
    """Two processes on one folder: each case once, by one of them."""
    ends = [other.end(pid) for pid in [other.begin(), other.begin()]]
    check(holds=[end[0] for end in ends] == [0, 0], what=str(ends))
    compare(whole, other)
    cases = sorted(case for end in ends for case in end[1])
    check(holds=cases == [f"case_{i:02d}" for i in range(CASES)], what=f"computed: {cases}")
    return f"{' and '.join(str(len(end[1])) for end in ends)} cases"


def two_and_bad(whole: Folder, other: Folder) -> str:
    """Two processes on one folder, with a damaged image among ten: both tell of it, and the others are done once."""
    folder = Folder(shutil.copytree(whole.images, other.out.with_name("two-and-bad-images")), other.out)
    (folder.images / "case_04_0000.nii.gz").write_bytes(b"damaged")
    ends = [folder.end(pid) for pid in [folder.begin(), folder.begin()]]
    for code, _, said in ends:
        is_told = "case_04_0000.nii.gz" in said and "(1 of 10 cases; the others are in" in said
        check(holds=code == 2 and is_told and "Traceback" not in said, what=said)
    compare(whole, Folder(whole.images, other.out), missing=frozenset({"case_04"}))
    cases = sorted(case for end in ends for case in end[1])
    check(holds=cases == [f"case_{i:02d}" for i in range(CASES) if i != 4], what=f"computed: {cases}")
    return f"{' and '.join(str(len(end[1])) for end in ends)} cases, both tell of the other one"


def one_dies(whole: Folder, other: Folder) -> str:
    """Of two processes one is killed, and the other does what it was at, too."""
    dying = other.begin(killed_in_write(12))
    time.sleep(0.05)
    code, _, said = other.end(other.begin())
    check(holds=other.end(dying)[0] == -signal.SIGKILL, what="nobody was killed")
    check(holds=code == 0, what=said)
    compare(whole, other)
    return "all there"


def bad_case(whole: Folder, other: Folder) -> str:
    """One damaged image, and one that vanishes after the start, among ten."""
    images = shutil.copytree(whole.images, other.out.with_name("bad"))
    (images / "case_04_0000.nii.gz").write_bytes(b"damaged")
    folder = Folder(images, other.out)

    def vanish() -> None:
        read = nifti.read

        def and_gone(path: Path) -> Any:
            (images / "case_07_0000.nii.gz").unlink(missing_ok=True)
            return read(path)

        nifti.read = and_gone

    code, _, said = folder.session(vanish)
    lines = [line for line in said.splitlines() if "case_" in line and not line.endswith(".nii.gz")]
    check(holds=code == 2 and len(lines) == 2 and "2 of 10 cases cannot be used" in said, what=said)
    compare(whole, Folder(whole.images, other.out), missing=frozenset({"case_04", "case_07"}))
    return "8 of 10, two lines"


def read_only(whole: Folder, other: Folder) -> str:
    """A folder that nothing can be written into, told before anything is computed."""
    other.out.mkdir()
    mounts = [["mount", "-t", "tmpfs", "tmpfs", other.out], ["mount", "-o", "remount,ro", other.out]]
    if os.geteuid():
        other.out.chmod(0o500)
    elif any(subprocess.run(words, check=False, capture_output=True).returncode for words in mounts):
        return "skipped, nothing can be mounted here"
    try:
        code, cases, said = Folder(whole.images, other.out).session()
        last = said.splitlines()[-1]
        check(holds=code == 2 and not cases and "cannot be written" in last and "Traceback" not in said, what=said)
        return last.partition(": ")[2]
    finally:
        if not os.geteuid():
            subprocess.run(["umount", other.out], check=True)


KINDS: dict[str, Callable[[Folder, Folder, argparse.Namespace], str]] = {
    "mid-write": lambda whole, other, args: mid_write(whole, other, args.times, args.seed),
    "two-at-once": lambda whole, other, _: two_at_once(whole, other),
    "two-and-bad": lambda whole, other, _: two_and_bad(whole, other),
    "one-of-two-dies": lambda whole, other, _: one_dies(whole, other),
    "bad-cases": lambda whole, other, _: bad_case(whole, other),
    "read-only": lambda whole, other, _: read_only(whole, other),
}


def main() -> int:
    """Run all of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill.predicting", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--times", type=int, default=TIMES, help="kills within a write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    images = make_dataset(folder / "data", cases=CASES) / "imagesTr"
    whole = Folder(images, folder / "whole")
    code, _, said = whole.session()
    check(holds=code == 0 and not PredictedFolder(whole.out).tables["replacing"], what=said)
    faults = 0
    for kind in args.kinds or KINDS:
        start, other = time.perf_counter(), Folder(images, folder / kind)
        try:
            what = KINDS[kind](whole, other, args)
        except AssertionError as error:
            faults, what = faults + 1, f"FAULT: {error}"
        print(f"{kind}: {what}, {time.perf_counter() - start:.1f} s", flush=True)
    shutil.rmtree(folder)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
