"""From a run's folder, a study, exported weights or a model that nnU-Net trained, or several, to a predictor."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from maskmed_zoo import registry
from maskmed_zoo.build import model_of
from maskmed_zoo.data.preprocess import PREPROCESSING, Preprocessing
from maskmed_zoo.errors import ArgumentError, CheckpointError
from maskmed_zoo.files import is_file, is_there
from maskmed_zoo.inference.nnunet import NNUNetPredictor
from maskmed_zoo.inference.postprocessing import read_postprocessing
from maskmed_zoo.inference.predictor import Predictor, together
from maskmed_zoo.recipe import Recipe, keys_of, load_recipe
from maskmed_zoo.recipe.difference import first_difference
from maskmed_zoo.runner.nnunet_folder import load_trained, trained_at
from maskmed_zoo.runner.run_folder import RunFolder, Which
from maskmed_zoo.runner.study_folder import folds_in
from maskmed_zoo.runner.study_members import finished_folds
from maskmed_zoo.weights.card import POSTPROCESSING, check_exported

log = logging.getLogger(__name__)
Source = RunFolder | str | Path
Overrides = Sequence[str] | Mapping[str, Any]


def load(
    source: Source,
    *,
    which: Which = "last",
    device: str | None = None,
    postprocess: bool = False,
    overrides: Overrides = (),
) -> Predictor:
    """The network of a run with its weights, or those of all finished folds of a study, ready to segment volumes.

    `RUN@best` and `RUN@last` say which weights of a run are meant, whatever `which` is. With `postprocess` label maps
    get what was chosen for the run or the study, if something was. `overrides` are of the recipe's section `inference`.
    Of a folder of nnU-Net's results the networks of its folds, see `runner.nnunet_folder`.
    Raises `CheckpointError` if a run, its weights or that choice are missing, broken or of another recipe or other
    weights, and `ArgumentError` for settings that are none of inference.
    """
    if which not in get_args(Which):
        raise ArgumentError(f"weights: expected 'last' or 'best', got {which!r}")
    run, which = _meant(source, which)
    trained = trained_at(run.path)
    if trained is not None:
        return load_trained(trained, which=which, overrides=overrides, device=device)
    if not run.path.exists() and run.path.name == str(run.path) and run.path.name in registry.names():
        name = run.path.name
        raise CheckpointError(
            f"'{name}' is a {registry.card(name).kind}, no run; give a folder that 'train' made or exported weights"
        )
    if which == "best" and run.is_exported and check_exported(run.path).get("weights") != "best":
        raise CheckpointError(f"{run.path}: the last weights of a run were exported here, not the best; export those")
    runs = [*finished_folds(run.path, log.warning).values()] if folds_in(run.path) else [run]
    recipe = _overridden(runs[0].recipe(with_loss=False), overrides)
    models = [model_of(recipe) for _ in runs]
    sums = [one.load_weights(model, which, recipe) for one, model in zip(runs, models, strict=True)]
    if runs[0].preprocessing != PREPROCESSING:
        log.warning(
            "%s: trained on images prepared as by an earlier version, and sees them as prepared today; train it again",
            run.path,
        )
    weights, file, steps = together(sums), run.path / POSTPROCESSING, None
    if postprocess and is_file(file):
        steps = read_postprocessing(file, weights, recipe.labels.foreground)
    return Predictor(recipe, models, runs[0].fingerprint(), device=device, weights_sha256=sums, postprocessing=steps)


def load_together(
    sources: Sequence[Source],
    *,
    which: Which = "last",
    device: str | None = None,
    postprocess: bool = False,
    overrides: Overrides = (),
) -> Predictor:
    """The networks of several runs, studies and exported weights, as often as given; windows are those of the first.

    They run in the precision of their recipes where it is the same, else in float32.
    Raises what `load` does, and `ArgumentError` unless all have the same labels and channels and see an image in the
    same way.
    """
    if not sources:
        raise ArgumentError("source: expected the folder of a run, or several, got none")
    postprocess = postprocess and len(sources) == 1  # else it was chosen for one of them
    members = [
        load(source, which=which, device=device, postprocess=postprocess, overrides=overrides) for source in sources
    ]
    first = members[0]
    if len(members) == 1:
        return first
    for source, member in zip(sources, members, strict=True):
        if isinstance(member, NNUNetPredictor):
            raise ArgumentError(
                f"{source}: nnU-Net's models average logits, and of their own folds alone; predict with it"
            )
    for source, other in zip(sources[1:], members[1:], strict=True):
        if difference := first_difference(_seen(first), _seen(other)):
            names = [str(one.path if isinstance(one, RunFolder) else one) for one in (source, sources[0])]
            raise ArgumentError(
                f"{names[0]}: cannot be averaged with {names[1]}: {difference}; predict with each of them"
            )
    models = [model for member in members for model in member.models]
    sums = [checksum for member in members for checksum in member.checksums]  # whichever come from one study
    return Predictor(_in_one_precision(members), models, first.fingerprint, device=device, weights_sha256=sums)


def _in_one_precision(members: Sequence[Predictor]) -> Recipe:
    """The recipe of the first, in float32 unless all were trained in the same precision."""
    recipe, is_one = members[0].recipe, len({member.recipe.train.amp for member in members}) == 1
    return recipe if is_one else load_recipe(recipe, {"train.amp": "off"}, unread=("loss",))


def _seen(predictor: Predictor) -> dict[str, Any]:
    """What networks have to share so that their probabilities of a window can be averaged."""
    recipe = predictor.recipe
    prepared = Preprocessing.of(recipe.data, predictor.channels, predictor.fingerprint)
    return {
        "data.channels": [*predictor.channels],
        "data.labels": dict(predictor.labels),
        "data.spacing": [*prepared.spacing],
        "data.normalization": [*prepared.schemes],
        "data.use_mask_for_norm": prepared.use_mask_for_norm,
        "fingerprint": prepared.key()[2],
        "data.patch_size": [*recipe.data.patch_size],
        "data.instances": recipe.data.instances,
        "data.mirror_axes": [*predictor.mirror_axes],
    }


def _meant(source: Source, which: Which) -> tuple[RunFolder, Which]:
    """The folder, and which of its weights; a folder that is called `…@best` is taken for what it is."""
    if isinstance(source, RunFolder):
        source = source.path
    path, at, end = str(source).rpartition("@")
    if at and end in get_args(Which) and not is_there(Path(source)):
        return RunFolder(Path(path)), "best" if end == "best" else "last"
    return RunFolder(Path(source)), which


def _overridden(recipe: Recipe, overrides: Overrides) -> Recipe:
    """The recipe with other settings of inference."""
    if not overrides:
        return recipe
    for key in keys_of(overrides):
        if key in type(recipe.inference).model_fields:
            raise ArgumentError(f"{key}: did you mean inference.{key}?")
        if key.partition(".")[0] != "inference":
            raise ArgumentError(
                f"{key}: belongs to what was trained; at prediction inference.overlap, inference.mirror and the "
                f"others of 'inference' may be set"
            )
    changed = load_recipe(recipe, overrides, unread=("loss",))
    if changed.inference.mirror and not changed.data.mirror_axes:
        raise ArgumentError(
            f"inference.mirror: '{recipe.name}' was trained without mirroring (data.mirror_axes is empty), so there is "
            f"no axis to mirror along; leave it off"
        )
    return changed
