"""From a folder of nnU-Net's results to a predictor; nnU-Net itself is not needed.

```
nnUNetTrainer__nnUNetPlans__3d_fullres/   dataset.json, plans.json
    fold_0/ fold_1/ … fold_all/           checkpoint_final.pth, checkpoint_best.pth
```
The folder stands for all its folds that are trained to their end, `fold_all` only where it is the only one; a fold's
folder for that fold; and the folder of a data set, in which such folders lie, for the only one in it. Checkpoints are
read as data (see `weights.files`). What cannot be done as nnU-Net does it is refused: networks other than nnU-Net's
own, 2-D ones, cascades, regions, and steps that a plan has replaced by others.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from maskmed_zoo.build import model_of
from maskmed_zoo.data.fingerprint import Fingerprint, IntensityStats
from maskmed_zoo.data.nnunet_order import READERS
from maskmed_zoo.errors import ArgumentError, CheckpointError, UserError, first_line
from maskmed_zoo.files import is_file, is_folder, read_json, sha256_of
from maskmed_zoo.inference.nnunet import NNUNetPredictor, NNUNetWay
from maskmed_zoo.inference.predictor import together
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.recipe import Recipe, keys_of, load_recipe
from maskmed_zoo.recipe.nnunet_plan import read_configuration, recipe_of_plan
from maskmed_zoo.recipe.schema import Scheme
from maskmed_zoo.runner.run_folder import Which
from maskmed_zoo.weights.files import check_tensors, read_torch, state_of
from maskmed_zoo.weights.load import load_weights
from maskmed_zoo.weights.source import CHECKPOINTS, DATASET

PLANS, MIRROR = "plans.json", "inference.mirror"
BASE = "pointwise_amos"
"""The recipe whose settings stand where a plan has none; prediction uses none of them."""
FILES: dict[Which, str] = {"last": CHECKPOINTS[0], "best": CHECKPOINTS[1]}
SCHEMES: dict[str, Scheme] = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}
"""Ours by the names of nnU-Net's normalization schemes."""
PREPROCESSOR, RESAMPLING = "DefaultPreprocessor", "resample_data_or_seg_to_shape"
ORDERS = {"data": 3, "probabilities": 1}
"""Of the splines by which images and logits are resampled."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A folder with plans.json, and the folder of the fold in it that is meant: None for all."""

    folder: Path
    fold: Path | None = None


@dataclass(frozen=True)
class _Checkpoint:
    """What a checkpoint says of itself, and its weights."""

    configuration: str
    mirror_axes: tuple[int, ...]
    weights: dict[str, Tensor] = field(compare=False)


def trained_at(path: Path) -> Trained | None:
    """The model of nnU-Net that a path stands for; None for any other path.

    Raises `CheckpointError` for the folder of a data set with several models.
    """
    if is_file(path / PLANS):
        return Trained(path)
    if path.name.startswith("fold_") and is_file(path.parent / PLANS):
        return Trained(path.parent, path)
    if not is_folder(path):
        return None
    inner = sorted(folder for folder in path.iterdir() if "__" in folder.name and is_file(folder / PLANS))
    if len(inner) > 1:
        names = ", ".join(folder.name for folder in inner)
        raise CheckpointError(f"{path}: {len(inner)} models that nnU-Net trained; give the folder of one: {names}")
    return Trained(inner[0]) if inner else None


def load_trained(
    trained: Trained,
    *,
    which: Which = "last",
    overrides: Sequence[str] | Mapping[str, Any] = (),
    device: str | None = None,
) -> NNUNetPredictor:
    """The networks of a model that nnU-Net trained, one for each fold, and nnU-Net's way of predicting with them.

    `which`: 'last' takes `checkpoint_final.pth`, 'best' `checkpoint_best.pth`. Of `overrides` there is one,
    `inference.mirror`, by default true. Raises `CheckpointError`, in one line, for what is missing, broken or not
    supported.
    """
    for key in keys_of(overrides):
        if key != MIRROR:
            raise ArgumentError(f"{key}: is nnU-Net's for a model that it trained; {MIRROR} alone may be set")
    files = _checkpoints(trained, FILES[which])
    first = _read(files[0])
    recipe, fingerprint, way = _read_plan(trained.folder, first)
    models: list[SegmentationModel] = []
    for file in files:
        read = first if file == files[0] else _read(file)
        if read != first:
            raise CheckpointError(f"{file}: has another configuration, or mirrors along other axes, than {files[0]}")
        models.append(_filled(recipe, read, file))
    stamp = together([sha256_of(file) for file in files])
    recipe = load_recipe(recipe, overrides)
    return NNUNetPredictor(recipe, models, fingerprint, way=way, device=device, weights_sha256=stamp)


def _checkpoints(trained: Trained, name: str) -> list[Path]:
    """The checkpoint of each fold that is meant."""
    if trained.fold is not None:
        folds = [trained.fold]
    else:
        numbered = [path for path in trained.folder.glob("fold_*") if path.name.removeprefix("fold_").isdecimal()]
        folds = sorted(numbered, key=lambda fold: (len(fold.name), fold.name))
    found = [fold / name for fold in folds if is_file(fold / name)]
    whole = trained.folder / "fold_all" / name
    if trained.fold is None and not found and is_file(whole):
        found = [whole]
    if not found:
        other = next(other for other in CHECKPOINTS if other != name)
        raise CheckpointError(
            f"{trained.fold or trained.folder}: no fold with {name}; train one to its end, or take {other} by "
            f"{'--weights best' if name == FILES['last'] else '--weights last'}"
        )
    left = [fold.name for fold in folds if fold / name not in found]
    if left and found != [whole]:
        log.warning("%s: without %s, where there is no %s", trained.folder, ", ".join(left), name)
    return found


def _read(file: Path) -> _Checkpoint:
    content: Any = read_torch(file)
    weights = state_of(content, str(file)).tensors
    check_tensors(weights, file)
    try:
        axes = tuple(int(axis) for axis in content.get("inference_allowed_mirroring_axes") or ())
        if not set(axes) <= {0, 1, 2} or len(set(axes)) < len(axes):
            raise ValueError(f"inference_allowed_mirroring_axes {axes}")
        return _Checkpoint(str(content["init_args"]["configuration"]), axes, weights)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: no checkpoint of nnU-Net's trainer ({type(error).__name__}: {first_line(error)}); give one as "
            f"nnU-Net wrote it"
        ) from error


def _filled(recipe: Recipe, read: _Checkpoint, file: Path) -> SegmentationModel:
    model = model_of(recipe)
    try:
        load_weights(model, read.weights)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: not the network of its plan: {error}") from error
    read.weights.clear()
    return model


def _read_plan(folder: Path, read: _Checkpoint) -> tuple[Recipe, Fingerprint, NNUNetWay]:
    """The recipe of the plan with its normalization, its intensity statistics, and nnU-Net's way.

    Raises `CheckpointError` for a plan that is none, or that asks for what is not done here.
    """
    place = folder / PLANS
    plans = read_json(place, error=CheckpointError)
    dataset = read_json(folder / DATASET, error=CheckpointError)
    try:
        configuration = read_configuration(place, read.configuration)
        _refuse_others(plans, configuration, read.configuration)
        recipe = recipe_of_plan(BASE, configuration, dataset=dataset, twin=True)
        names, masks = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
        schemes = [SCHEMES[name] for name in names]
        masked = {bool(mask) for scheme, mask in zip(schemes, masks, strict=True) if scheme == "zscore"}
        if len(masked) > 1:
            raise CheckpointError("use_mask_for_norm differs between channels of z-scores, expected one for all")
        statistics = plans["foreground_intensity_properties_per_channel"] if "ct" in schemes else {}
        channels = range(len(schemes) if "ct" in schemes else 0)
        fingerprint = tuple(IntensityStats.from_dict(statistics[str(channel)]) for channel in channels)
        z, y, x = (int(axis) for axis in plans["transpose_forward"])
        way = NNUNetWay((z, y, x), READERS[plans["image_reader_writer"]], read.mirror_axes)
        settings: dict[str, Any] = {
            "name": "nnunet",
            "data.normalization": schemes,
            "data.use_mask_for_norm": True in masked,
        }
        settings[MIRROR] = True
        return load_recipe(recipe, settings), fingerprint, way
    except UserError as error:
        raise CheckpointError(f"{place}: {first_line(error, 1000).removeprefix(f'{place}: ')}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(f"{place}: no whole plan of nnU-Net ({what}); give it as nnU-Net wrote it") from error


def _refuse_others(plans: dict[str, Any], configuration: dict[str, Any], name: str) -> None:
    """Raise `CheckpointError` where a plan asks for what is not done here, or in another way."""
    if configuration.get("previous_stage"):
        raise CheckpointError(
            f"'{name}' is a cascade, which needs the label maps of {configuration['previous_stage']}; "
            f"predict with 3d_fullres or 3d_lowres, or with nnU-Net"
        )
    found: dict[str, Any] = {
        "image_reader_writer": (plans["image_reader_writer"], READERS),
        "preprocessor_name": (configuration.get("preprocessor_name", PREPROCESSOR), (PREPROCESSOR,)),
        "transpose_forward": (sorted(plans["transpose_forward"]), ([0, 1, 2],)),
    }
    for channel, scheme in enumerate(configuration["normalization_schemes"]):
        found[f"normalization_schemes[{channel}]"] = (scheme, SCHEMES)
    for what, order in ORDERS.items():
        key = f"resampling_fn_{what}"
        found[key] = (configuration[key], (RESAMPLING,))
        wanted = {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}
        found[f"{key}_kwargs"] = (configuration[f"{key}_kwargs"], (wanted,))
    for key, (value, known) in found.items():
        if value not in known:
            raise CheckpointError(
                f"{key} is {value}, expected {' or '.join(map(str, known))}; predict with nnU-Net itself"
            )
