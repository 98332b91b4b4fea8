"""`train`: from a recipe and a data set to a run folder, resumable after every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch

from maskmed_zoo.data.bind import bind
from maskmed_zoo.data.cache import CaseCache, Parts
from maskmed_zoo.data.fingerprint import DatasetFingerprint, Fingerprint, fingerprint_dataset
from maskmed_zoo.data.preprocess import Preprocessing
from maskmed_zoo.data.sources import Data, Source, Split, open_sources
from maskmed_zoo.device import pick_device, pick_workers
from maskmed_zoo.errors import ArgumentError, Failures
from maskmed_zoo.files import UNFINISHED, remove_abandoned, write_json
from maskmed_zoo.memory import within_memory
from maskmed_zoo.network_size import check_bytes
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.feed import Stream
from maskmed_zoo.runner.loop import Loop
from maskmed_zoo.runner.manifest import check_folder, environment, now, run_facts
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.start import check_extension, check_init, lengthened, load_init, record_extension
from maskmed_zoo.runner.trainer import Trainer
from maskmed_zoo.weights.source import weights_in

CACHE = ".maskmed_cache"
"""Preprocessed cases, in the folder that holds the runs, shared by them; safe to delete."""


@within_memory("training", "lower train.batch_size or data.patch_size, or use --device cpu")
def train(
    recipe: Recipe,
    *,
    data: Data,
    out: Path,
    fold: int | Literal["all"] = 0,
    device: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    init: Path | None = None,
    extend_to: int | None = None,
    display: Display | None = None,
) -> RunFolder:
    """Train `recipe` on one fold of the nnU-Net folder `data`, or of several, and write the run to `out`.

    Of a folder given as `DIR@all`, or with fold "all" of each, every case trains and none validates. Labels of several
    data sets are merged by name. `init` has weights to begin from, as `start_from` reads them. `resume` continues an
    interrupted run after its last whole epoch, and with `extend_to` until after so many.
    Raises `DataError` for data sets that cannot be used or contradict the recipe, naming all cases at fault,
    `CheckpointError` if `out` holds a run and `resume` is not given, or one of another recipe, data set, fold, seed or
    start, or another process trains there; `OutputError` where nothing can be written, `NonFiniteError` if training
    diverges, `MemoryShortageError`.
    """
    display = display or Display()
    target = pick_device(device)
    run = RunFolder(out)
    if extend_to is not None:
        if not resume:
            raise ArgumentError("--extend-to (extend_to=) lengthens a run that is there; give --resume (resume=) too")
        check_extension(run, extend_to)
        recipe = lengthened(recipe, extend_to)
    sources = open_sources(data, whole=fold == "all", must_validate=False)
    fold = 0 if fold == "all" else fold
    for remark in (line for source in sources for line in source.dataset.remarks):
        display.say(remark)
    recipe = bind(recipe, *(source.dataset for source in sources))
    splits = [source.splits(fold) for source in sources]
    workers = pick_workers(workers, target)
    facts = run_facts(sources, splits, fold)
    check_folder(run, recipe, facts, resume, extend_to)
    if init is not None and not resume:
        weights_in(init)  # what is not there is said before any case is prepared
    trainer = Trainer(recipe, target, display.say)
    trainer.model.encoder.out_spec.check_patch(recipe.data.patch_size)
    voxels = recipe.train.batch_size * len(recipe.channels) * prod(recipe.data.patch_size)
    check_bytes(4 * voxels, torch.device("cpu"), "a batch's images", "voxels in patch_size, or a smaller batch_size")
    with run.held(display.say):
        check_folder(run, recipe, facts, resume, extend_to)  # again: another process may have been at work until now
        remove_abandoned(run.path, f"{UNFINISHED}*")
        parts = list(zip(sources, splits, strict=True))
        _train(run, trainer, parts, facts, display, workers=workers, resume=resume, init=init)
    return run


def _train(
    run: RunFolder,
    trainer: Trainer,
    parts: Sequence[tuple[Source, Split]],
    facts: dict[str, Any],
    display: Display,
    *,
    workers: int,
    resume: bool,
    init: Path | None,
) -> None:
    """Prepare the cases, write down what the run is made from, and train."""
    recipe, sources = trainer.recipe, [source for source, _ in parts]
    folder, is_new = run.path.parent / CACHE, not run.manifest_file.exists()
    if not is_new:
        check_init(run, run.manifest(), init)
    start = None if init is None or not is_new else load_init(trainer, init)
    found = () if is_new else run.fingerprint()
    how = Preprocessing.of(recipe.data, recipe.channels, found)
    needs_statistics = "ct" in how.schemes
    if is_new and needs_statistics:
        found = _fingerprint(sources, folder, display, workers)
        how = Preprocessing.of(recipe.data, recipe.channels, found)
    caches: list[CaseCache] = []
    failures, cases = Failures(), 0
    for source, split in parts:
        cache = CaseCache(folder, source.dataset, how, recipe.data.instances)
        chosen = (*split.training, *split.validation)
        with display.task(f"preparing cases of {source.dataset.name}") as progress:
            cache.prepare(chosen, workers=workers, progress=progress, failures=failures)
        caches.append(cache)
        cases += len(chosen)
    failures.tell(cases, "the others are prepared; mend these, or take them out of the data set", in_one_line=True)
    training = [(cache, split.training) for cache, (_, split) in zip(caches, parts, strict=True)]
    validation = [(cache, split.validation) for cache, (_, split) in zip(caches, parts, strict=True)]
    if is_new:
        if not needs_statistics:  # measured while the cases were prepared
            found = _fingerprint(sources, folder, display, workers)
        paths = [{"path": str(source.dataset.root.resolve())} for source, _ in parts]
        manifest = facts | {
            "recipe": recipe.name,
            "data": [path | record for path, record in zip(paths, facts["data"], strict=True)],
            "seed": recipe.train.seed,
            "fingerprint": [stats.to_dict() for stats in found],
            "started": now(),
            "environment": environment(trainer.device),
        }
        run.write_recipe(recipe)
        write_json(run.manifest_file, manifest | ({} if start is None else {"init": start}))
    elif recipe.train.epochs != run.recipe().train.epochs:
        record_extension(run, recipe)
    elif recipe.evaluation != run.recipe().evaluation:
        run.write_recipe(recipe)
    streams: dict[Stream, Parts] = {"train": training}
    if any(cases for _, cases in validation):
        streams["validation"] = validation
    loop = Loop(trainer=trainer, run=run, parts=streams, workers=workers)
    if resume:
        loop.resume()
    began = run.manifest().get("init")
    if began is not None and start is None and not trainer.iteration:  # killed before the first state was written
        load_init(trainer, Path(began["source"]), began["sha256"])
    loop.run_to_end(display)


def _fingerprint(sources: Sequence[Source], folder: Path, display: Display, workers: int) -> Fingerprint:
    """Foreground intensities of all labelled cases of the data sets, those of no fold of the run among them."""
    failures, cases = Failures(), 0
    measured: list[DatasetFingerprint] = []
    for source in sources:
        dataset = source.dataset
        with display.task(f"measuring cases of {dataset.name}") as progress:
            measured.append(
                fingerprint_dataset(dataset, folder=folder, workers=workers, progress=progress, failures=failures)
            )
        cases += len(dataset.cases)
    failures.tell(cases, "the others can be used; mend these, or take them out of the data set", in_one_line=True)
    return DatasetFingerprint.merged(measured).intensities
