"""Jobs in turn: each once, shared with every other process that works through jobs of the same folders."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import IO

import torch.distributed as dist

from maskmed_zoo.errors import ArgumentError
from maskmed_zoo.evaluation.aggregate import headline
from maskmed_zoo.files import UNFINISHED, make_folder, remove_abandoned, write_text
from maskmed_zoo.lock import locked
from maskmed_zoo.runner.job import Job, Task, run_in_process


def work_through(
    jobs: Sequence[Job], task: Task, say: Callable[[str], None], after: Callable[[], object] = lambda: None
) -> None:
    """Run the jobs that are neither finished nor in the hands of another process; `after` is called after each.

    A job that fails is reported and left for the next call; the others continue. Equal jobs are one.
    """
    work = _Work(jobs, task, say, after)
    while work.one_pass():
        pass


def refuse_torchrun() -> None:
    """Raise `ArgumentError` in a process of `torchrun`: its children would be taken for others of the same run."""
    if dist.is_available() and dist.is_torchelastic_launched():
        raise ArgumentError(
            "torchrun lets several processes train one run; to share several runs, give this command several times "
            "without it, or give torchrun a single fold: train --fold 0 --out STUDY/fold_0"
        )


class _Work:
    """The loop's state: which failures are older than it."""

    def __init__(
        self, jobs: Sequence[Job], task: Task, say: Callable[[str], None], after: Callable[[], object]
    ) -> None:
        self.task, self.say, self.after = task, say, after
        self.jobs = list({job.run.path: job for job in jobs}.values())
        for folder in {job.run.path.parent for job in self.jobs}:
            make_folder(folder)
            remove_abandoned(folder, f"{UNFINISHED}*")
        self.old_failures = {job.run.path: _changed(job) for job in self.jobs}

    def one_pass(self) -> bool:
        """Every free job in turn; whether there was one."""
        did_any = False
        for job in self.jobs:
            if self._is_settled(job):
                continue
            with locked(job.lock) as lock:
                if lock is None or self._is_settled(job):  # by another process, a moment ago
                    continue
                self._run(job, lock)
            self.after()
            did_any = True
        return did_any

    def _is_settled(self, job: Job) -> bool:
        """Finished, or failed since this process began, here or elsewhere."""
        return job.scores() is not None or _changed(job) not in (None, self.old_failures[job.run.path])

    def _run(self, job: Job, lock: IO[str]) -> None:
        start = time.perf_counter()
        self.say(f"{job.title}: in {job.run.path}, log {job.log.name}")
        job.failed.unlink(missing_ok=True)
        failure = run_in_process(job, self.task, lock)
        scores = job.scores()
        if failure is not None or scores is None:
            write_text(job.failed, f"{failure}\n")
            self.say(f"{job.title}: failed: {failure}")
        else:
            score = headline(scores)
            dice = "–" if score is None else f"{score:z.4f}"
            self.say(f"{job.title}: mean Dice {dice}, {time.perf_counter() - start:.0f} s")


def _changed(job: Job) -> int | None:
    """When the job's failure was written, ns; None if there is none."""
    try:
        return job.failed.stat().st_mtime_ns
    except OSError:
        return None
