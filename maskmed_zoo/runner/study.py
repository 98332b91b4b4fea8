"""`train --folds`: several folds of one recipe, a run each, into one folder, and a score of all their cases together.

Every fold is a job: trained once, resumed where it was interrupted, shared with other processes that do the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskmed_zoo.arguments import parse_numbers
from maskmed_zoo.build import network_facts
from maskmed_zoo.data.bind import bind
from maskmed_zoo.data.sources import Data, check_disjoint, open_sources
from maskmed_zoo.device import pick_device, pick_workers
from maskmed_zoo.errors import CheckpointError, ZooError
from maskmed_zoo.files import sha256_of
from maskmed_zoo.lock import locked
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.job import Job, Task
from maskmed_zoo.runner.jobs import refuse_torchrun, work_through
from maskmed_zoo.runner.manifest import check_folder, run_facts
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.study_folder import fold_path, folds_in
from maskmed_zoo.runner.study_members import check_alike
from maskmed_zoo.runner.study_scores import pool, write_scores
from maskmed_zoo.weights.source import weights_in

OWN = re.compile(r"fold_\d+(\..*)?|evaluation\..*|\..*")
"""Names of what a study may hold before its first fold has begun."""


def train_study(
    recipe: Recipe,
    *,
    data: Data,
    out: Path,
    folds: str | Sequence[int],
    device: str | None = None,
    workers: int | None = None,
    init: Path | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Train and score the folds that are neither finished nor in the hands of another process, and pool the scores.

    Returns `scores`, as `pool` gives them, of all finished folds in `out`, None without any; and `incomplete`: fold and
    state of the others, and whether it is one of `folds`. A fold that fails is reported and left for the next call; the
    others continue. Raises, before anything is made, what `train` does, `ArgumentError` for no folds, `DataError` where
    a case validates in two of them, and `CheckpointError` for a folder that holds something else, folds of another
    recipe or other data, another start, and no weights in `init`, with which every fold begins.
    """
    display, numbers = display or Display(), parse_numbers("folds", folds)
    refuse_torchrun()
    pick_workers(workers, pick_device(device))
    start = None if init is None else weights_in(init)
    sources = open_sources(data)
    splits = {fold: [source.splits(fold) for source in sources] for fold in {*folds_in(out), *numbers}}
    check_disjoint(sources, splits)
    bound = bind(recipe, *(source.dataset for source in sources))
    _check_out(out)
    for fold, parts in splits.items():
        run = RunFolder(fold_path(out, fold))
        check_folder(run, bound, run_facts(sources, parts, fold), run.exists())
    _check_starts(out, numbers, init, start)
    network_facts(bound)
    jobs = {fold: Job(f"fold {fold}", recipe, RunFolder(fold_path(out, fold)), fold) for fold in splits}
    paths = tuple(str(path) for path in ([data] if isinstance(data, str | Path) else data))
    work_through([jobs[fold] for fold in numbers], Task(paths, device, workers, init), display.say)
    return {
        "scores": _pooled(out, jobs, data, display),
        "incomplete": [
            {"fold": fold, "state": job.state(), "is_asked_for": fold in numbers}
            for fold, job in sorted(jobs.items())
            if job.scores() is None
        ],
    }


def check_failures(summary: Mapping[str, Any]) -> None:
    """Raise `ZooError` with a line for each fold that was asked for and, as `train_study` says, has failed."""
    failed = [fold for fold in summary["incomplete"] if fold["is_asked_for"] and fold["state"].startswith("failed")]
    if failed:
        raise ZooError("\n".join(f"fold {fold['fold']}: {fold['state']}" for fold in failed))


def _pooled(out: Path, jobs: Mapping[int, Job], data: Data, display: Display) -> dict[str, Any] | None:
    """The scores of the folds that are finished by now, written; whoever ends last has them all."""
    with locked(out / "evaluation.lock", wait=True):
        found = {fold: scores for fold, job in sorted(jobs.items()) if (scores := job.scores()) is not None}
        if not found:
            return None
        runs = {fold: jobs[fold].run for fold in found}
        check_alike(runs)
        scores = pool(runs, found)
        write_scores(out, runs, scores, data, display)
        return scores


def _check_out(out: Path) -> None:
    """Raise `CheckpointError` for a folder in which there is something else than a study."""
    run = RunFolder(out)
    if run.exists() or run.is_exported:
        raise CheckpointError(f"{out}: holds one run, not a study of several; give a new folder with --out")
    is_ours = out.is_dir() and (folds_in(out) or all(OWN.fullmatch(path.name) for path in out.iterdir()))
    if out.exists() and not is_ours:
        raise CheckpointError(f"{out}: exists and is no study; give a new folder with --out")


def _check_starts(out: Path, numbers: Sequence[int], init: Path | None, file: Path | None) -> None:
    """Raise `CheckpointError` where folds began otherwise than from `init`, of which `file` has the weights."""
    runs = [RunFolder(path) for path in folds_in(out).values()]
    begun = {run.path: run.manifest().get("init") for run in runs if run.manifest_file.exists()}
    given = None if init is None else str(init.absolute())
    for path, start in begun.items():
        if given != (start and start["source"]):
            how = f"give --init {start['source']}" if start else "leave out --init (init=)"
            raise CheckpointError(
                f"{path}: began from {start['source'] if start else 'fresh weights'}, and all folds of a study begin "
                f"alike; {how}, or train into a new folder"
            )
    is_any_new = any(fold_path(out, fold) not in begun for fold in numbers)
    found = sha256_of(file) if file is not None and begun and is_any_new else None
    for path, start in begun.items():
        if found is not None and start and start["sha256"] != found:
            raise CheckpointError(
                f"{file}: has changed since {path} began from it; put it back, or train into a new folder"
            )
