"""From a run's folder, a study, exported weights or a model that nnU-Net trained, to a predictor."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

from maskmed_zoo import registry
from maskmed_zoo.build import model_of
from maskmed_zoo.data.preprocess import PREPROCESSING
from maskmed_zoo.errors import ArgumentError, CheckpointError
from maskmed_zoo.inference.predictor import Predictor, together
from maskmed_zoo.runner.nnunet_folder import load_trained, trained_at
from maskmed_zoo.runner.run_folder import RunFolder, Which
from maskmed_zoo.runner.study_folder import folds_in
from maskmed_zoo.runner.study_members import finished_folds
from maskmed_zoo.weights.card import check_exported

log = logging.getLogger(__name__)


def load(
    source: RunFolder | str | Path, *, which: Which = "last", mirroring: bool | None = None, device: str | None = None
) -> Predictor:
    """The network of a run with its weights, or those of all finished folds of a study, ready to segment volumes.

    Of a folder of nnU-Net's results the networks of its folds, see `runner.nnunet_folder`; `mirroring` is for those
    alone, by default as nnU-Net does. Raises `CheckpointError` if a run or its weights are missing, broken or of
    another recipe.
    """
    if which not in get_args(Which):
        raise ArgumentError(f"weights: expected 'last' or 'best', got {which!r}")
    run = source if isinstance(source, RunFolder) else RunFolder(Path(source))
    trained = trained_at(run.path)
    if trained is not None:
        return load_trained(trained, which=which, mirroring=mirroring is not False, device=device)
    if mirroring is not None:
        raise ArgumentError(f"mirroring: {run.path} is no model of nnU-Net, for which alone there is a choice")
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
    return Predictor(recipe, models, runs[0].fingerprint(), device=device, weights_sha256=together(sums))
