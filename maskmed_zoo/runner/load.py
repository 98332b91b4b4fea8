"""From a run's folder, or exported weights, to a predictor."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

from maskmed_zoo import registry
from maskmed_zoo.build import model_of
from maskmed_zoo.data.preprocess import PREPROCESSING
from maskmed_zoo.errors import ArgumentError, CheckpointError
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.runner.run_folder import RunFolder, Which
from maskmed_zoo.weights.card import check_exported

log = logging.getLogger(__name__)


def load(source: RunFolder | str | Path, *, which: Which = "last", device: str | None = None) -> Predictor:
    """The network of a run with its weights, ready to segment volumes.

    Raises `CheckpointError` if the run or its weights are missing, broken or of another recipe.
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
    recipe = run.recipe(with_loss=False)
    model = model_of(recipe)
    sha256 = run.load_weights(model, which, recipe)
    if run.preprocessing != PREPROCESSING:
        log.warning(
            "%s: trained on images prepared as by an earlier version, and sees them as prepared today; train it again",
            run.path,
        )
    return Predictor(recipe, model, run.fingerprint(), device=device, weights_sha256=sha256)
