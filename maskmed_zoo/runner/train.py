"""`train`: from a recipe and a data set to a run folder, resumable from its last state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch

from maskmed_zoo import distributed
from maskmed_zoo.data.bind import bind
from maskmed_zoo.data.cache import CaseCache, Parts
from maskmed_zoo.data.fingerprint import DatasetFingerprint, Fingerprint, fingerprint_dataset
from maskmed_zoo.data.preprocess import Preprocessing
from maskmed_zoo.data.sources import Data, Source, Split, open_sources
from maskmed_zoo.device import pick_device, pick_workers
from maskmed_zoo.errors import ArgumentError, Failures, PeerError, RecipeError
from maskmed_zoo.files import UNFINISHED, remove_abandoned, remove_unfinished, write_json
from maskmed_zoo.memory import within_memory
from maskmed_zoo.network_size import check_bytes
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.callbacks import Callback
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.feed import Stream
from maskmed_zoo.runner.loop import Loop
from maskmed_zoo.runner.manifest import check_folder, data_hash, environment, now, run_facts
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.start import begin_fresh, check_extension, check_init, lengthened, load_init, record_extension
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
    callbacks: Sequence[Callback] = (),
    display: Display | None = None,
) -> RunFolder:
    """Train `recipe` on one fold of the nnU-Net folder `data`, or of several, and write the run to `out`.

    Of a folder given as `DIR@all`, or with fold "all" of each, every case trains and none validates. Labels of several
    data sets are merged by name. `init` has weights to begin from, as `start_from` reads them. `resume` continues an
    interrupted run from its last state, and with `extend_to` until after so many epochs; `callbacks` are told of steps
    and epochs. Of several processes that `torchrun` has started, rank 0 prepares the cases and writes; `out` and `data`
    are the same folders for all.
    Raises `DataError` for data sets that cannot be used or contradict the recipe, naming all cases at fault,
    `CheckpointError` if `out` holds a run and `resume` is not given, or one of another recipe, data set, fold, seed or
    start, or another process trains there; `OutputError` where nothing can be written, `NonFiniteError` if training
    diverges, `MemoryShortageError`; `StoppedError`, or KeyboardInterrupt by Ctrl-C, where a signal stopped training,
    whose state is saved then.
    """
    distributed.join()
    display = display or Display(quiet=not distributed.is_first())
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
    if recipe.train.patience is not None and not any(split.validation for split in splits):
        raise RecipeError("train.patience: no case validates, so nothing would end training; give train.patience=null")
    workers = pick_workers(workers, target)
    facts = run_facts(sources, splits, fold)
    is_first = distributed.is_first()
    if is_first:
        check_folder(run, recipe, facts, resume, extend_to)
    if init is not None and not resume:
        weights_in(init)  # what is not there is said before any case is prepared
    trainer = Trainer(recipe, target, display.say)
    trainer.model.encoder.out_spec.check_patch(recipe.data.patch_size)
    voxels = recipe.train.batch_size * len(recipe.channels) * prod(recipe.data.patch_size)
    check_bytes(4 * voxels, torch.device("cpu"), "a batch's images", "voxels in patch_size, or a smaller batch_size")
    with run.held(display.say) if is_first else nullcontext():
        if is_first:
            check_folder(run, recipe, facts, resume, extend_to)  # again: another may have been at work
            remove_abandoned(run.path, f"{UNFINISHED}*")
            remove_unfinished(run.trained_files)
        chosen = list(zip(sources, splits, strict=True))
        how: dict[str, Any] = {"workers": workers, "resume": resume, "init": init, "callbacks": callbacks}
        _train(run, trainer, chosen, facts, display, **how)
    distributed.wait()  # until all is written
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
    callbacks: Sequence[Callback],
) -> None:
    """Prepare the cases, write down what the run is made from, and train."""
    is_first, folder, instances = distributed.is_first(), run.path.parent / CACHE, trainer.recipe.data.instances
    start: dict[str, Any] | None = None
    if is_first and run.manifest_file.exists():
        check_init(run, run.manifest(), init)
    elif is_first and init is not None:
        start = load_init(trainer, init)
    elif is_first:
        begin_fresh(trainer)
    how = _prepare(run, trainer, parts, facts, display, workers=workers, start=start) if is_first else None
    how = distributed.from_first(how)
    if how is None:
        raise PeerError("rank 0 has prepared nothing")
    caches = [CaseCache(folder, source.dataset, how, instances) for source, _ in parts]
    streams: dict[Stream, Parts] = {
        "train": [(cache, split.training) for cache, (_, split) in zip(caches, parts, strict=True)]
    }
    if any(split.validation for _, split in parts):
        streams["validation"] = [(cache, split.validation) for cache, (_, split) in zip(caches, parts, strict=True)]
    loop = Loop(trainer=trainer, run=run, parts=streams, workers=workers, callbacks=callbacks)
    if resume:
        loop.resume()
    began = run.manifest().get("init") if is_first and start is None and not trainer.iteration else None
    if began is not None:  # killed before the first state was written
        load_init(trainer, Path(began["source"]), began["sha256"])
    loop.run_to_end(display)


def _prepare(
    run: RunFolder,
    trainer: Trainer,
    parts: Sequence[tuple[Source, Split]],
    facts: dict[str, Any],
    display: Display,
    *,
    workers: int,
    start: dict[str, Any] | None,
) -> Preprocessing:
    """Prepare the cases of every data set, write recipe and manifest of a new run; returns how they were prepared."""
    recipe, sources = trainer.recipe, [source for source, _ in parts]
    folder, is_new = run.path.parent / CACHE, not run.manifest_file.exists()
    found = () if is_new else run.fingerprint()
    how = Preprocessing.of(recipe.data, recipe.channels, found)
    needs_statistics = "ct" in how.schemes
    if is_new and needs_statistics:
        found = _fingerprint(sources, folder, display, workers)
        how = Preprocessing.of(recipe.data, recipe.channels, found)
    failures, cases = Failures(), 0
    for source, split in parts:
        cache = CaseCache(folder, source.dataset, how, recipe.data.instances)
        chosen = (*split.training, *split.validation)
        with display.task(f"preparing cases of {source.dataset.name}") as progress:
            cache.prepare(chosen, workers=workers, progress=progress, failures=failures)
        cases += len(chosen)
    failures.tell(cases, "the others are prepared; mend these, or take them out of the data set", in_one_line=True)
    if is_new:
        if not needs_statistics:  # measured while the cases were prepared
            found = _fingerprint(sources, folder, display, workers)
        paths = [{"path": str(source.dataset.root.resolve())} for source, _ in parts]
        manifest = facts | {
            "recipe": recipe.name,
            "data": [path | record for path, record in zip(paths, facts["data"], strict=True)],
            "data_hash": data_hash(sources, [split for _, split in parts]),
            "seed": recipe.train.seed,
            "processes": distributed.size(),
            "fingerprint": [stats.to_dict() for stats in found],
            "started": now(),
            "environment": environment(trainer.device),
        }
        run.write_recipe(recipe)
        write_json(run.manifest_file, manifest | ({} if start is None else {"init": start}))
    elif recipe.train.epochs != (known := run.recipe()).train.epochs:
        record_extension(run, known.train.epochs, recipe)
    elif recipe != known:
        run.write_recipe(recipe)
    return how


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
