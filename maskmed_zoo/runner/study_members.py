"""The runs of a study that count: trained to their end, on one recipe and the same data sets, from one start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.files import is_file, sha256_of
from maskmed_zoo.recipe.difference import first_difference, what_trains
from maskmed_zoo.runner.metrics_file import read_rows, trained_epochs
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.study_folder import folds_in


def finished_folds(study: Path, say: Callable[[str], None]) -> dict[int, RunFolder]:
    """The folds that are trained to their end, by number; `say` is told which are not.

    Raises `CheckpointError` where there is none, or where they are of different recipes, data sets or starts.
    """
    runs = {fold: RunFolder(path) for fold, path in folds_in(study).items()}
    planned = {fold: run.recipe(with_loss=False).train.epochs for fold, run in runs.items()}
    epochs = {fold: (_trained(run), run.whole(planned[fold])) for fold, run in runs.items()}
    left = {fold: f"fold {fold} ({done} of {all_} epochs)" for fold, (done, all_) in epochs.items() if done < all_}
    if len(left) == len(runs):
        raise CheckpointError(f"{study}: no fold is trained to its end; 'train --folds' with this --out goes on")
    if left:
        say(f"{study}: without {', '.join(left.values())}; 'train --folds' with this --out goes on")
    finished = {fold: run for fold, run in runs.items() if fold not in left}
    check_alike(finished)
    return finished


def check_alike(runs: Mapping[int, RunFolder]) -> None:
    """Raise `CheckpointError` unless all are of the recipe, the data sets and the start of the first."""
    first: tuple[RunFolder, dict[str, Any], list[Any], str | None] | None = None
    for fold, run in runs.items():
        manifest = run.manifest()
        if manifest["fold"] != fold:
            raise CheckpointError(f"{run.path}: a run of fold {manifest['fold']}; give it the name of its fold")
        recipe = what_trains(run.recipe(with_loss=False))
        sets = [{key: data[key] for key in ("name", "cases", "prefix", "labels")} for data in manifest["data"]]
        made_of = [sets, manifest["fingerprint"], manifest["preprocessing"]]
        start = (manifest.get("init") or {}).get("sha256")
        first = first or (run, recipe, made_of, start)
        other = f"{run.path}: no fold of one study with {first[0].path}"
        if difference := first_difference(first[1], recipe):
            raise CheckpointError(f"{other}: another recipe: {difference}; train it with the recipe of the others")
        if made_of != first[2]:
            raise CheckpointError(f"{other}: other data sets, or their images were others; train it on the same data")
        if start != first[3]:
            raise CheckpointError(f"{other}: it began from other weights (--init); train it from those of the others")


def _trained(run: RunFolder) -> int:
    """Whole epochs, by the rows of metrics or, where some are lost, by what the weights say."""
    config = run.recipe(with_loss=False).train
    epochs = trained_epochs(read_rows(run.metrics_file, config.iterations_per_epoch))
    weights = run.weights_file("last")
    if epochs < config.epochs and is_file(weights):
        epochs = max(epochs, run.epochs_behind("last", sha256_of(weights)) or 0)
    return epochs
