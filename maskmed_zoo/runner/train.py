"""`train`: from a recipe and a data set to a run folder, resumable after every epoch."""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch

from maskmed_zoo.data.bind import bind
from maskmed_zoo.data.cache import CaseCache, fingerprint_of
from maskmed_zoo.data.sources import Data, open_sources
from maskmed_zoo.device import pick_device, pick_workers
from maskmed_zoo.files import write_json
from maskmed_zoo.network_size import check_bytes
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.loop import Loop
from maskmed_zoo.runner.manifest import check_folder, environment, now, run_facts
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.trainer import Trainer

CACHE = ".maskmed_cache"
"""Preprocessed cases, in the folder that holds the runs, shared by them; safe to delete."""


def train(
    recipe: Recipe,
    *,
    data: Data,
    out: Path,
    fold: int = 0,
    device: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    display: Display | None = None,
) -> RunFolder:
    """Train `recipe` on one fold of the nnU-Net folder `data`, or of several, and write the run to `out`.

    Of a folder given as `DIR@all` every case trains and none validates. Labels of several data sets are merged by
    name. `resume` continues an interrupted run after its last whole epoch. Raises `DataError` for data sets that cannot
    be used or contradict the recipe, `CheckpointError` if `out` holds a run and `resume` is not given, or one of
    another recipe, data set, fold or seed; `NonFiniteError` if training diverges.
    """
    display = display or Display()
    target = pick_device(device)
    sources = open_sources(data)
    recipe = bind(recipe, *(source.dataset for source in sources))
    splits = [source.splits(fold) for source in sources]
    run = RunFolder(out)
    workers = pick_workers(workers, target)
    facts = run_facts(sources, splits, fold)
    check_folder(run, recipe, facts, resume)
    trainer = Trainer(recipe, target, display.say)
    trainer.model.encoder.out_spec.check_patch(recipe.data.patch_size)
    voxels = recipe.train.batch_size * len(recipe.channels) * prod(recipe.data.patch_size)
    check_bytes(4 * voxels, torch.device("cpu"), "a batch's images", "voxels in patch_size, or a smaller batch_size")
    caches: list[CaseCache] = []
    for source, split in zip(sources, splits, strict=True):
        cache = CaseCache(out.parent / CACHE, source.dataset, recipe.data.spacing, recipe.data.instances)
        with display.task(f"preparing cases of {source.dataset.name}") as progress:
            cache.prepare((*split.training, *split.validation), workers=workers, progress=progress)
        caches.append(cache)
    training = [(cache, split.training) for cache, split in zip(caches, splits, strict=True)]
    validation = [(cache, split.validation) for cache, split in zip(caches, splits, strict=True)]
    if not run.manifest_file.exists():
        paths = [{"path": str(source.dataset.root.resolve())} for source in sources]
        manifest = facts | {
            "recipe": recipe.name,
            "data": [path | record for path, record in zip(paths, facts["data"], strict=True)],
            "seed": recipe.train.seed,
            "fingerprint": [stats.to_dict() for stats in fingerprint_of(training)],
            "started": now(),
            "environment": environment(target),
        }
        run.write_recipe(recipe)
        write_json(run.manifest_file, manifest)
    loop = Loop(
        trainer=trainer,
        run=run,
        parts={"train": training, "validation": validation},
        fingerprint=run.fingerprint(),
        workers=workers,
    )
    if resume:
        loop.resume()
    loop.run_to_end(display)
    return run
