"""Begin a training from what is given, or go on with one from what its folder knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from maskmed_zoo.data.sources import WHOLE, gone
from maskmed_zoo.errors import ArgumentError, CheckpointError
from maskmed_zoo.files import is_folder
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.study import train_study
from maskmed_zoo.runner.train import train

Overrides = Sequence[str] | Mapping[str, Any]


def begin(
    recipe: str | Path | Recipe | None,
    overrides: Overrides,
    *,
    data: str | Path | Sequence[str | Path] | None,
    out: Path | None,
    fold: int | Literal["all"] | None,
    device: str | None,
    resume: bool | str | Path,
    **how: Any,
) -> tuple[RunFolder, Sequence[str | Path], str | None]:
    """`train` with a recipe, data and a new folder; with `resume`, what is not given is what the run knows.

    `resume` is the run's folder, or True for that in `out`; `how` has further arguments of `train`. Returns the run,
    its data sets and the device. Raises `ArgumentError` where something is missing.
    """
    given = None if data is None else [data] if isinstance(data, str | Path) else list(data)
    if not isinstance(resume, bool) and out is not None and Path(resume).absolute() != out.absolute():
        raise ArgumentError(f"two folders to go on in, {resume} and {out}; give --resume RUN (resume=) without --out")
    run = out if isinstance(resume, bool) else Path(resume)
    if run is not None and resume is not False and (recipe is None or given is None or resume is not True):
        known = Known.of(run, overrides if recipe is None else (), given)
        loaded = known.recipe if recipe is None else load_recipe(recipe, overrides)
        given, fold, device = known.data, known.fold if fold is None else fold, device or known.device
    elif recipe is None or given is None or run is None:
        raise ArgumentError(
            "to train, give RECIPE, --data and --out (recipe, data=, out=); to go on, --resume RUN (resume=) is enough"
        )
    else:
        loaded = load_recipe(recipe, overrides)
    resumes = resume is not False
    folder = train(loaded, data=given, out=run, fold=fold or 0, device=device, resume=resumes, **how)
    return folder, given, device


def begin_study(
    recipe: str | Path | Recipe | None,
    overrides: Overrides,
    *,
    data: str | Path | Sequence[str | Path] | None,
    out: Path | None,
    alone: Mapping[str, Any],
    **how: Any,
) -> dict[str, Any]:
    """`train_study`; raises `ArgumentError` where something is missing, or given that is for a run `alone`."""
    given = [name for name, value in alone.items() if value is not None and value is not False and value != []]
    if given:
        raise ArgumentError(f"folds: give no {', '.join(given)} beside them; a study goes on by itself")
    if recipe is None or data is None or out is None:
        raise ArgumentError("to train folds, give RECIPE, --data and --out (recipe, data=, out=)")
    return train_study(load_recipe(recipe, overrides), data=data, out=out, **how)


@dataclass(frozen=True)
class Known:
    """With what a run goes on: its recipe, data sets, fold and device."""

    recipe: Recipe
    data: list[str]
    fold: int
    device: str

    @classmethod
    def of(cls, path: Path, overrides: Sequence[str] | Mapping[str, Any], data: Sequence[str | Path] | None) -> Known:
        """Of the run at `path`; `data` is where its data sets are now, in their order, if they have moved.

        Raises `CheckpointError` where there is no run, or its data sets are not where they were.
        """
        run = RunFolder(path)
        if not run.exists() and not run.is_exported:
            raise CheckpointError(f"{path}: nothing to resume, no recipe.yaml here; give the folder of a run")
        manifest = run.manifest()
        records: list[dict[str, Any]] = manifest["data"]
        places = [record["path"] for record in records] if data is None else [str(place) for place in data]
        if len(places) != len(records):
            named = ", ".join(record["name"] for record in records)
            raise ArgumentError(
                f"{path}: {len(places)} data sets given; give those of the run, in their order: {named}"
            )
        for record, place in zip(records, places, strict=True):
            if data is None and not is_folder(Path(place)):
                raise CheckpointError(gone(record))
        wholes = [WHOLE if record["cases"] == "all" else "" for record in records]
        places = [f"{place.removesuffix(whole)}{whole}" for place, whole in zip(places, wholes, strict=True)]
        device = str(manifest["environment"].get("device", "cpu"))
        # Which of several cards it was says nothing about the next time.
        return cls(load_recipe(run.recipe(), overrides), places, manifest["fold"], device.partition(":")[0])
