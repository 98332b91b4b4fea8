"""What a run was made from, written at its start: data, folds, versions; and whether a folder may be trained into."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from maskmed_zoo.data.preprocess import PREPROCESSING
from maskmed_zoo.data.sources import Source, Split
from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.recipe.difference import first_difference, what_trains
from maskmed_zoo.runner.run_folder import RunFolder


def run_facts(sources: Sequence[Source], splits: Sequence[Split], fold: int) -> dict[str, Any]:
    """What a run has to keep to when it is resumed."""
    pairs = list(zip(sources, splits, strict=True))
    return {
        "dataset": " + ".join(source.title for source in sources),
        "fold": fold,
        "training": [source.name_of(case) for source, split in pairs for case in split.training],
        "validation": [source.name_of(case) for source, split in pairs for case in split.validation],
        "data": [source.record((*split.training, *split.validation)) for source, split in pairs],
        "preprocessing": PREPROCESSING,
    }


def check_folder(
    run: RunFolder, recipe: Recipe, facts: dict[str, Any], resume: bool, extend_to: int | None = None
) -> None:
    """Raise `CheckpointError` unless `run` is free or, to `resume`, holds one of this recipe and these `run_facts`.

    The recipe's `evaluation` may be another one, and it may be longer if it is to be extended.
    """
    if run.is_exported:
        raise CheckpointError(
            f"{run.path}: holds exported weights, which are not trained further; give a new folder with --out, and "
            f"--init '{run.path}' to start from them"
        )
    if not run.exists():
        if resume:
            raise CheckpointError(
                f"{run.path}: nothing to resume, no recipe.yaml here; to start, leave out --resume or resume=True"
            )
        if run.path.exists() and (not run.path.is_dir() or any(not p.name.startswith(".") for p in run.path.iterdir())):
            raise CheckpointError(f"{run.path}: exists and is no run; give a new folder with --out")
        return
    if not resume:
        raise CheckpointError(
            f"{run.path}: already holds a run; add --resume or resume=True to continue it, or give a new folder"
        )
    known, wanted = what_trains(run.recipe()), what_trains(recipe)
    planned, epochs = known["train"]["epochs"], wanted["train"]["epochs"]
    as_long = known | {"train": known["train"] | {"epochs": epochs}}
    difference = first_difference(known if extend_to is None else as_long, wanted)
    if difference:
        is_longer = epochs > planned and first_difference(as_long, wanted) is None
        how = f", or lengthen the run with --extend-to {epochs} (extend_to={epochs})" if is_longer else ""
        raise CheckpointError(
            f"{run.path}: checkpoint of another recipe: {difference}; resume with the run's recipe.yaml{how}"
        )
    if not run.manifest_file.exists() and not run.state_file.exists():
        return  # killed before its first epoch
    manifest = run.manifest()
    kept = manifest | {"data": [{k: v for k, v in record.items() if k != "path"} for record in manifest["data"]]}
    if manifest["preprocessing"] != PREPROCESSING:
        raise CheckpointError(
            f"{run.path}: its images were prepared as by an earlier version, and would be others from here on; "
            f"continue with that version, or use a new folder"
        )
    changes = {"data": "sets whose labels, or labels annotated in a case, are now others"}
    for name, value in facts.items():
        if kept.get(name) != value:
            change = changes.get(name, "cases that are now others")
            change = f"{kept.get(name)}, not {value}" if name in ("dataset", "fold") else change
            raise CheckpointError(f"{run.path}: the run is on {name} {change}; restore the data or use a new folder")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware."""
    from importlib.metadata import version

    from maskmed_zoo.version import __version__

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "maskmed_zoo": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": version("monai"),
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
    }


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
