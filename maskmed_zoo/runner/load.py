"""From a run's folder, a study or exported weights, to a predictor."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

from maskmed_zoo import registry
from maskmed_zoo.build import model_of
from maskmed_zoo.data.preprocess import PREPROCESSING
from maskmed_zoo.errors import ArgumentError, CheckpointError
from maskmed_zoo.files import is_file
from maskmed_zoo.inference.postprocessing import POSTPROCESSING, read_postprocessing
from maskmed_zoo.inference.predictor import Predictor, together
from maskmed_zoo.runner.run_folder import RunFolder, Which
from maskmed_zoo.runner.study_folder import folds_in
from maskmed_zoo.runner.study_members import finished_folds
from maskmed_zoo.weights.card import check_exported

log = logging.getLogger(__name__)


def load(
    source: RunFolder | str | Path,
    *,
    which: Which = "last",
    device: str | None = None,
    postprocess: bool = False,
) -> Predictor:
    """The network of a run with its weights, or those of all finished folds of a study, ready to segment volumes.

    With `postprocess` label maps get what was chosen for the run or the study, if something was. Raises
    `CheckpointError` if a run, its weights or that choice are missing, broken or of another recipe or other weights.
    """
    if which not in get_args(Which):
        raise ArgumentError(f"weights: expected 'last' or 'best', got {which!r}")
    run = source if isinstance(source, RunFolder) else RunFolder(Path(source))
    if not run.path.exists() and run.path.name == str(run.path) and run.path.name in registry.names():
        name = run.path.name
        raise CheckpointError(
            f"'{name}' is a {registry.card(name).kind}, no run; give a folder that 'train' made or exported weights"
        )
    if which == "best" and run.is_exported and check_exported(run.path).get("weights") != "best":
        raise CheckpointError(f"{run.path}: the last weights of a run were exported here, not the best; export those")
    runs = [*finished_folds(run.path, log.warning).values()] if folds_in(run.path) else [run]
    recipe = runs[0].recipe(with_loss=False)
    models = [model_of(recipe) for _ in runs]
    sums = [one.load_weights(model, which, recipe) for one, model in zip(runs, models, strict=True)]
    if runs[0].preprocessing != PREPROCESSING:
        log.warning(
            "%s: trained on images prepared as by an earlier version, and sees them as prepared today; train it again",
            run.path,
        )
    weights, file, steps = together(sums), run.path / POSTPROCESSING, None
    if postprocess and is_file(file):
        steps = read_postprocessing(file, weights, recipe.labels)
    return Predictor(recipe, models, runs[0].fingerprint(), device=device, weights_sha256=weights, postprocessing=steps)
