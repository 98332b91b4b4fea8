"""The network of an nnU-Net v2 plan as a recipe of this package.

Idea: the plan decides levels, channels, kernels, strides, spacing, patch and batch; the recipe decides neck, head, loss
and how to train. That is the protocol of MaskMed (§4), and with neck `skip` and head `pointwise` the result is the
plan's own network, so that `load_weights` can fill it from nnU-Net's checkpoint.

Source: the `architecture` section that nnU-Net v2.3 and later write into `nnUNetPlans.json`. Networks other than
`PlainConvUNet` and `ResidualEncoderUNet`, 2-D ones, and plans of earlier versions are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskmed_zoo.errors import DataError, JointError, first_line
from maskmed_zoo.files import read_json
from maskmed_zoo.labels import Labels, LabelsError
from maskmed_zoo.recipe import Recipe, load_recipe

ENCODERS = {
    "PlainConvUNet": ("plain_conv", "n_conv_per_stage"),
    "ResidualEncoderUNet": ("residual", "n_blocks_per_stage"),
}
TWIN = {"model.neck": {"kind": "skip"}, "model.head": {"kind": "pointwise"}, "model.loss": {"kind": "ce_dice"}}
"""The parts that nnU-Net's own network has."""
_LAYERS = {"conv_op": "Conv3d", "norm_op": "InstanceNorm3d", "nonlin": "LeakyReLU", "dropout_op": None}


def recipe_of_plan(
    recipe: str | Path | Recipe,
    configuration: Mapping[str, Any],
    *,
    dataset: Mapping[str, Any] | None = None,
    twin: bool = False,
) -> Recipe:
    """`recipe` with the encoder, decoder, spacing, patch and batch of a plan's configuration.

    Args:
        recipe: neck, head, loss and training.
        configuration: one entry of a plan's `configurations`, whole (see `read_configuration`).
        dataset: nnU-Net's `dataset.json`, for names of channels and labels; None leaves them to the data set.
        twin: nnU-Net's own neck, head and loss in place of the recipe's.

    Raises `JointError` for a network that has no counterpart here, and for what is no configuration of a plan,
    `DataError` for labels that are regions.
    """
    try:
        settings = _settings(configuration, dataset)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise JointError(
            f"not a whole configuration of an nnU-Net plan, or no dataset.json of nnU-Net ({what}); give those that "
            f"nnU-Net wrote"
        ) from error
    return load_recipe(recipe, settings | (TWIN if twin else {}))


def _settings(configuration: Mapping[str, Any], dataset: Mapping[str, Any] | None) -> dict[str, Any]:
    encoder, decoder = _parts(configuration)
    channels, labels = (None, None) if dataset is None else (_channels(dataset, configuration), _labels(dataset))
    return {
        "model.encoder": encoder,
        "model.decoder": decoder,
        "data.mirror_axes": [],  # nnU-Net mirrors by its own rule
        "data.instances": None,
        "data.channels": channels,
        "data.labels": labels,
        "data.spacing": [float(x) for x in configuration["spacing"]],
        "data.patch_size": [int(x) for x in configuration["patch_size"]],
        "train.batch_size": int(configuration["batch_size"]),
        "train.accumulate": 1,
    }


def read_configuration(plans: Path, name: str) -> dict[str, Any]:
    """The configuration `name` of a plans file, with what it inherits; raises `DataError` where it is not there."""
    content = read_json(plans)
    try:
        every: dict[str, dict[str, Any]] = content["configurations"]
        whole: dict[str, Any] = {}
        wanted: str | None = name
        for _ in range(len(every)):
            if wanted is None:
                break
            whole = every[wanted] | whole
            wanted = every[wanted].get("inherits_from")
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{plans}: no configuration '{name}' in an nnU-Net plan here ({type(error).__name__}: {error}); "
            f"give nnUNetPlans.json or the plans.json of a trained model"
        ) from error
    return whole


def _parts(configuration: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of encoder and decoder."""
    architecture = configuration.get("architecture")
    if architecture is None:
        raise JointError("the plan has no 'architecture': plan anew with nnU-Net 2.3 or later")
    if len(configuration["patch_size"]) != 3:
        raise JointError("the plan's configuration is 2-D; use a 3-D one such as 3d_fullres")
    kind = str(architecture["network_class_name"]).rsplit(".", 1)[-1]
    arguments: dict[str, Any] = architecture["arch_kwargs"]
    if kind not in ENCODERS:
        raise JointError(f"the plan's network is '{kind}', expected {' or '.join(ENCODERS)}; plan with those")
    for name, wanted in _LAYERS.items():
        found = arguments.get(name)
        if (found if found is None else str(found).rsplit(".", 1)[-1].strip("'>")) != wanted:
            raise JointError(f"the plan's network has {name} {found}, expected {wanted}; plan with nnU-Net's defaults")
    encoder, blocks = ENCODERS[kind]
    kernels = arguments["kernel_sizes"]
    return (
        {
            "kind": encoder,
            "channels": arguments["features_per_stage"],
            "strides": arguments["strides"],
            "kernels": kernels,
            "blocks": arguments[blocks],
        },
        {"kind": "unet", "blocks": arguments["n_conv_per_stage_decoder"][::-1], "kernels": kernels[:-1]},
    )


def _channels(dataset: Mapping[str, Any], configuration: Mapping[str, Any]) -> Sequence[str]:
    """Input channels in order: the image's, and in a cascade one map per label of the previous stage."""
    names = dataset.get("channel_names") or dataset["modality"]
    channels = [str(names[key]) for key in sorted(names, key=int)]
    if configuration.get("previous_stage"):
        channels += [f"previous {name}" for name in _labels(dataset).foreground]
    return channels


def _labels(dataset: Mapping[str, Any]) -> Labels:
    labels: dict[str, Any] = dataset["labels"]
    regions = [name for name, value in labels.items() if isinstance(value, list | tuple)]
    if regions:
        raise DataError(f"dataset.json: '{regions[0]}' is a region of several labels; only plain labels can be trained")
    try:
        return Labels(labels)
    except LabelsError as error:
        raise DataError(f"dataset.json: {error}") from error
