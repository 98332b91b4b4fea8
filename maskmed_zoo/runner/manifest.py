"""What a run was made from, written at its start: data, folds, versions; and whether a folder may be trained into."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from maskmed_zoo.data.preprocess import PREPROCESSING
from maskmed_zoo.data.sources import Source, Split
from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.recipe.difference import first_difference, what_trains
from maskmed_zoo.runner.run_folder import RunFolder

ENDS = 2**12
"""Bytes at each end of a file."""
CODE = ("maskmed_zoo", "recipes", "registry")
"""Folders of a checkout that a run depends on."""
PATIENCE = 20.0
"""Seconds that git may take."""


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
    if not run.manifest_file.exists() and not run.has_state():
        return  # killed before its first step
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


def data_hash(sources: Sequence[Source], splits: Sequence[Split]) -> str | None:
    """A checksum of the files of all cases of a run, the same for every fold; None where one cannot be read.

    Of a file its name, size and both ends count, which is quick: a .gz file ends with a checksum of what it holds.
    """
    checksum = hashlib.sha256()
    try:
        for source, split in zip(sources, splits, strict=True):
            for case in sorted((*split.training, *split.validation), key=source.name_of):
                checksum.update(source.name_of(case).encode())
                for path in (*case.images, *([case.label] if case.label else [])):
                    checksum.update(f"/{path.name}/{path.stat().st_size}/".encode())
                    with path.open("rb") as file:
                        checksum.update(file.read(ENDS))
                        file.seek(-min(ENDS, path.stat().st_size), os.SEEK_END)
                        checksum.update(file.read(ENDS))
    except OSError:
        return None
    return checksum.hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware."""
    from importlib.metadata import version

    from maskmed_zoo.version import __version__

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "maskmed_zoo": __version__,
        **_checkout(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": version("monai"),
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
    }


def _checkout(root: Path) -> dict[str, Any]:
    """The commit at which the package is, and whether it was changed since; empty where it is no checkout."""
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return {}
    words = (git, "--no-optional-locks", f"--git-dir={root / '.git'}", f"--work-tree={root}")

    def ask(*question: str) -> str:
        done = subprocess.run(
            [*words, *question], capture_output=True, text=True, check=True, timeout=PATIENCE, cwd=root
        )
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", *CODE))}
    except (subprocess.SubprocessError, OSError):
        return {}


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
