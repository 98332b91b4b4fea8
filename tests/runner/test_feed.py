"""The batches of a run: their order, processes that stay and are ended, and why one of them died."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from maskmed_zoo.data.cache import CaseCache
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.data.fingerprint import fingerprint_dataset
from maskmed_zoo.data.patches import Patch, PatchDataset
from maskmed_zoo.data.preprocess import Preprocessing
from maskmed_zoo.errors import DataError, MemoryShortageError, WorkerError
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.feed import Feed, Part, Stream
from maskmed_zoo.runner.train import train
from maskmed_zoo.runner.trainer import Trainer
from maskmed_zoo.runner.worker_death import cause_of

ROOT = Path(__file__).parents[2]
TRAINS = """
import os, sys, time
from maskmed_zoo.cli.main import main
from maskmed_zoo.data.patches import PatchDataset

make = PatchDataset.__getitem__
def told(self, index):
    os.write(1, f"{os.getpid()}\\n".encode())  # whole, whoever else writes
    return make(self, index)
PatchDataset.__getitem__ = told
sys.exit(main(sys.argv[1:]))
"""


class Numbered(Dataset[Patch]):
    """Patches that hold their index and the process that made them; at index `at`, something is done before."""

    def __init__(self, at: int = -1, does: Callable[[], object] = lambda: None) -> None:
        self.at, self.does = at, does

    def __getitem__(self, index: int) -> Patch:
        if index == self.at:
            self.does()
        return {"image": torch.tensor([index]), "labels": torch.tensor([os.getpid()]), "annotated": torch.zeros(1)}


class Slow(Numbered):
    """Made after whoever wants it has begun to wait."""

    def __getitem__(self, index: int) -> Patch:
        time.sleep(0.3)
        return super().__getitem__(index)


def feed(workers: int, dataset: Dataset[Patch] | None = None, length: int = 16) -> Feed:
    dataset = dataset or Numbered()
    parts: dict[Stream, Part] = {
        "train": Part(dataset, range(4, length)),
        "validation": Part(Numbered(), cycle(range(4))),
    }
    return Feed(parts, batch_size=2, workers=workers)


def numbers(batches: list[Patch]) -> list[list[int]]:
    return [batch["image"].flatten().tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_order_over_epochs_and_repeated_validation(workers: int) -> None:
    """Two epochs of three batches from the middle of a run, each with the same validation."""
    before = torch.get_rng_state()
    with feed(workers) as source:
        seen = [(numbers(list(source.take("train", 3))), numbers(list(source.take("validation", 2)))) for _ in range(2)]
    assert [train for train, _ in seen] == [[[4, 5], [6, 7], [8, 9]], [[10, 11], [12, 13], [14, 15]]]
    assert [validation for _, validation in seen] == [[[0, 1], [2, 3]]] * 2
    assert torch.equal(torch.get_rng_state(), before), "dropout would depend on when a run was continued"


def test_processes_stay_and_read_ahead_across_the_border_of_epochs() -> None:
    with feed(2, Numbered(at=10, does=lambda: Path(name).touch()), 40) as source:
        first = {int(pid) for batch in source.take("train", 3) for pid in batch["labels"].flatten()}
        alive = multiprocessing.active_children()
        deadline = time.monotonic() + 20
        while not Path(name).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert Path(name).exists(), "the next epoch's first patch is made before anybody asks for it"
        second = {int(pid) for batch in source.take("train", 3) for pid in batch["labels"].flatten()}
        assert first == second
        assert len(first) == 2
        assert len(alive) == len(source.processes) == 3
        assert os.getpid() not in first
    assert not multiprocessing.active_children()


@pytest.fixture(autouse=True)
def _name(tmp_path: Path) -> None:
    global name  # noqa: PLW0603  what a process of the loader leaves is seen by nothing else
    name = str(tmp_path / "made")


def dies(number: signal.Signals) -> Callable[[], None]:
    def does() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), number)

    return does


def refuses() -> None:
    raise DataError("x.nii.gz: damaged; DataError: none; copy it again")


def has_no_memory() -> None:
    raise MemoryError("8 GiB")


def has_no_shared_memory() -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)")


CAUSES = {
    "killed": (dies(signal.SIGKILL), MemoryShortageError, r"SIGKILL.*memory runs out; use fewer --workers, or 0 \(now"),
    "crashed": (dies(signal.SIGSEGV), WorkerError, r"segmentation fault.*--workers 0"),
    "bus error": (dies(signal.SIGBUS), MemoryShortageError, r"shared memory \(bus error.*/dev/shm.*fewer --workers"),
    "left": (lambda: os._exit(3), WorkerError, r"exit code 3.*--workers 0"),
    "refused": (refuses, DataError, r"^x\.nii\.gz: damaged; DataError: none; copy it again$"),
    "memory": (has_no_memory, MemoryShortageError, r"8 GiB.*fewer --workers"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_dead_process_is_told_by_its_cause(cause: str, capfd: pytest.CaptureFixture[str]) -> None:
    does, kind, words = CAUSES[cause]

    def taken() -> None:
        with feed(2, Numbered(at=8, does=does)) as source:
            assert numbers(list(source.take("train", 1))) == [[4, 5]]
            deadline = time.monotonic() + 1  # a patch that cannot be made is no death
            while time.monotonic() < deadline and all(process.is_alive() for process in source.processes):
                time.sleep(0.01)  # and nothing is raised here, in the middle of a step
            list(source.take("train", 5))

    with pytest.raises(kind, match=words) as caught:
        taken()
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()
    assert "Traceback" not in capfd.readouterr().err


def test_a_death_interrupts_no_step_where_another_loader_ran_before() -> None:
    """PyTorch's handler of SIGCHLD is there then, stays there, and is not told of our processes."""
    list(DataLoader(Numbered(), sampler=range(2), num_workers=1))
    handler = signal.getsignal(signal.SIGCHLD)
    with feed(2) as source:
        os.kill(source.processes[0].pid or 0, signal.SIGKILL)
        source.processes[0].join(10)
        time.sleep(0.1)  # a step, in which nothing is raised
        with pytest.raises(MemoryShortageError, match="SIGKILL"):
            list(source.take("train", 1))
    assert callable(handler)
    assert signal.getsignal(signal.SIGCHLD) is handler


def test_a_process_that_dies_while_it_is_waited_for() -> None:
    with pytest.raises(MemoryShortageError, match="SIGKILL"), feed(1, Slow(at=8, does=dies(signal.SIGKILL))) as source:
        list(source.take("train", 5))


def test_little_shared_memory_that_is_noticed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskmed_zoo.runner.feed.default_collate", lambda _: has_no_shared_memory())
    with pytest.raises(MemoryShortageError, match=r"No space left.*/dev/shm"), feed(1) as source:
        list(source.take("train", 1))


def test_other_errors_keep_their_traceback() -> None:
    with (
        pytest.raises(ZeroDivisionError, match="Original Traceback"),
        feed(1, Numbered(at=4, does=lambda: 1 // 0)) as f,
    ):
        list(f.take("train", 1))
    assert not multiprocessing.active_children()


def test_processes_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", start)
    with pytest.raises(MemoryShortageError, match=r"cannot be started \(Cannot allocate memory\); use fewer"):
        feed(1).__enter__()


def test_validation_that_cannot_be_started_ends_training(monkeypatch: pytest.MonkeyPatch) -> None:
    start, count = multiprocessing.process.BaseProcess.start, iter(range(9))

    def second(self: multiprocessing.process.BaseProcess) -> None:
        if next(count) == 1:
            raise OSError(11, "Resource temporarily unavailable")
        start(self)

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", second)
    source = feed(1)
    with pytest.raises(MemoryShortageError, match="cannot be started"):
        source.__enter__()
    assert not multiprocessing.active_children()


def test_an_unknown_signal_is_a_number() -> None:
    assert "exit code -200" in str(cause_of(-200, 1))


def test_what_is_fed_can_be_sent_to_a_process(dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """As platforms need that do not fork."""
    recipe, opened = load_recipe(tiny_recipe), open_dataset(dataset)
    how = Preprocessing.of(recipe.data, recipe.channels, fingerprint_dataset(opened).intensities)
    cache = CaseCache(tmp_path / "cache", opened, how)
    cache.prepare(opened.cases)
    parts = [(cache, opened.cases)]
    patches = PatchDataset(
        parts, recipe.data, labels=recipe.labels, batch_size=recipe.train.batch_size, seed=0,
        stream="train",
    )  # fmt: skip
    sent = pickle.loads(pickle.dumps(patches))
    assert torch.equal(sent[3]["image"], patches[3]["image"])


def test_training_ends_its_processes(
    dataset: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it succeeds, and at Ctrl-C in the middle of an epoch; the weights do not depend on it."""
    recipe = load_recipe(tiny_recipe)
    step, count = Trainer.step, iter(range(100))

    def interrupted(self: Trainer, **batch: torch.Tensor) -> dict[str, float]:
        assert len(multiprocessing.active_children()) == 3
        if next(count) == 4:
            raise KeyboardInterrupt
        return step(self, **batch)

    whole = train(recipe, data=dataset, out=tmp_path / "whole", device="cpu", workers=0)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, data=dataset, out=tmp_path / "parts", device="cpu", workers=2)
    assert not multiprocessing.active_children()
    parts = train(recipe, data=dataset, out=tmp_path / "parts", device="cpu", workers=2, resume=True)
    assert not multiprocessing.active_children()
    trained = [load_file(run.weights_file("last")) for run in (whole, parts)]
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_a_job_leaves_a_state_no_process_and_no_traceback(
    dataset: Path, tiny_recipe: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """A group of processes that gets SIGINT as from Ctrl-C, or SIGTERM as from a scheduler, workers included."""
    words = ["train", str(tiny_recipe), "--data", str(dataset), "--out", str(tmp_path / "run"), "--device", "cpu"]
    words += ["--workers", "2", "--set", "train.epochs=1000"]
    group = subprocess.Popen(
        [sys.executable, "-c", TRAINS, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert group.stdout is not None
    pids = {int(group.stdout.readline()) for _ in range(16)}  # four more than are made before training begins
    os.killpg(group.pid, number)
    _, told = group.communicate(timeout=60)
    assert group.returncode == code, told
    assert f"stopped by {number.name}; go on with --resume" in told.splitlines()[-1]
    assert (tmp_path / "run" / "state_last.pt").exists()
    assert "Traceback" not in told
    assert len(pids) >= 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
