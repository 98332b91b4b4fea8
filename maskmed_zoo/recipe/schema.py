"""The recipe as types: what a YAML recipe may say, with every default in one place.

`Recipe` is the static type the rest of the package works with. The component slots of `Recipe.model` are narrowed
to the configs of the components that a recipe names, or to unions over all that are registered, because which
components there are is known only once the registry has been read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import ConfigDict, Field, SerializeAsAny, create_model, field_validator, model_validator

from maskmed_zoo import registry
from maskmed_zoo.contracts import ComponentConfig
from maskmed_zoo.errors import RecipeError
from maskmed_zoo.labels import Labels
from maskmed_zoo.metric_settings import MetricSettings
from maskmed_zoo.settings import LARGEST, Name, PositiveInt, Settings, Side

Axis = Literal["z", "y", "x"]
Part = Literal["encoder", "neck", "decoder", "head"]
Probability = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Range = tuple[PositiveFloat, PositiveFloat]
Scheme = Literal["ct", "zscore", "none", "rescale_to_0_1", "rgb_to_0_1"]
PatchSize = tuple[Side, Side, Side]
Spacing = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class NNUNetAugmentation(Settings):
    """Random changes to training patches as nnU-Net's default trainer makes them; there is nothing to set."""

    kind: Literal["nnunet"] = "nnunet"


class LightAugmentation(Settings):
    """Fewer and milder changes, but for noise, for schedules too short for nnU-Net's; probabilities are per patch."""

    kind: Literal["light"] = "light"
    spatial_probability: Probability = Field(default=0.2, description="rotate and scale a patch with this probability")
    rotation: float = Field(default=30.0, ge=0, le=180, description="largest rotation about each axis, degrees")
    scale: Range = Field(default=(0.7, 1.4), description="smallest and largest zoom")
    intensity_probability: Probability = Field(
        default=0.15, description="probability of each of noise, blur, brightness, contrast, low resolution and gamma"
    )

    @field_validator("scale")
    @classmethod
    def _smallest_first(cls, scale: Range) -> Range:
        if scale[0] > scale[1]:
            raise ValueError(f"the smallest zoom comes first, got {list(scale)}")
        return scale


Augmentation = Annotated[NNUNetAugmentation | LightAugmentation, Field(discriminator="kind")]


class DataRecipe(Settings):
    """What the network sees: channels, labels, spacing, patches and how they are drawn."""

    channels: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="input channels in file order (_0000, _0001, …); null: the data set's"
    )
    labels: Labels | None = Field(
        default=None, description="label name to value, background 0, optionally 'ignore'; null: the data set's"
    )
    spacing: Spacing = Field(description="voxel size the network works at, mm, (z, y, x)")
    patch_size: PatchSize = Field(description="training and inference window, voxels, (z, y, x)")
    normalization: Literal["auto"] | Scheme | tuple[Scheme, ...] = Field(
        default="auto",
        description="auto: by a channel's name, as in nnU-Net: CT (clip and z-score by the fingerprint), noNorm, "
        "rescale_to_0_1, rgb_to_0_1, any other z-scores of the case; else one scheme for all channels, or a list",
    )
    use_mask_for_norm: bool = Field(
        default=False, description="z-scores over the non-zero region alone, and 0 around it, as where a skull is cut"
    )
    foreground_oversampling: Probability = Field(
        default=0.33,
        description="share of patches centered on a foreground voxel: in every batch of n all but the first "
        "round(n x (1 - share)), as in nnU-Net, which is one of 2",
    )
    unannotated: Literal["marginalize", "background"] = Field(
        default="marginalize",
        description="labels not annotated in a case: its background may be any of them, or is taken for background",
    )
    instances: Literal["components", "map"] | None = Field(
        default=None,
        description="instances of one label: its connected parts, or the numbers in instancesTr; null: not separated",
    )
    mirror_axes: tuple[Axis, ...] = Field(
        default=(), max_length=3, description="axes flipped at random in training; x is left-right"
    )
    augmentation: Augmentation = Field(
        default=NNUNetAugmentation(), description="nnunet: nnU-Net's default policy; light: a milder one"
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _label_values_are_numbers(cls, labels: Any) -> Any:
        if isinstance(labels, dict) and any(isinstance(value, bool) for value in cast(dict[Any, Any], labels).values()):
            raise ValueError("label values are numbers, not true or false")
        return labels

    @model_validator(mode="after")
    def _channels_have_schemes(self) -> DataRecipe:
        if not isinstance(self.normalization, str):
            given, channels = len(self.normalization), len(self.channels or self.normalization)
            if given != channels or not given:
                raise ValueError(
                    f"normalization lists {given} schemes for {channels or 'all'} channels; give one for each, or one "
                    f"for all of them, as in normalization: zscore"
                )
        return self

    @model_validator(mode="after")
    def _pairs_are_not_mirrored(self) -> DataRecipe:
        problem = None if self.labels is None else self.mirrored_pair(self.labels)
        if problem:
            raise ValueError(problem)
        return self

    def mirrored_pair(self, labels: Labels) -> str | None:
        """What is wrong if the mirror axes would exchange two of the labels."""
        if not labels.pairs or "x" not in self.mirror_axes:
            return None
        left, right = labels.pairs[0]
        return (
            f"'{left}' and '{right}' are a left/right pair, which place alone distinguishes; "
            f"take x, left-right, out of mirror_axes"
        )

    @property
    def num_classes(self) -> int | None:
        """Number of labels, background counted and 'ignore' not; None where the data set decides."""
        return None if self.labels is None else len(self.labels.names)


class Optimizer(Settings):
    """Two parameter groups: CNN (encoder, decoder) at `lr`, Transformer (neck, query head) at `lr` times a scale."""

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = Field(default=1e-3, description="base rate of the CNN group")
    transformer_scale: PositiveFloat = Field(default=0.1, description="base rate of the Transformer group over `lr`")
    weight_decay: float = Field(default=3e-5, ge=0)
    momentum: float = Field(default=0.99, ge=0, lt=1, description="SGD only, Nesterov")
    warmup_iterations: int = Field(default=0, ge=0, le=LARGEST, description="linear warm-up from zero")
    poly_power: PositiveFloat = Field(
        default=0.9, description="rate x (1 - progress) ** power, for each group's own base rate"
    )
    gradient_clip: PositiveFloat = Field(default=12.0, description="largest gradient norm")
    fused: Literal["auto", "on", "off"] = Field(
        default="auto", description="update all weights in one kernel; auto: on the CPU, where it was measured"
    )


class TrainRecipe(Settings):
    """Length, batch and optimisation of one training run."""

    epochs: PositiveInt = 1000
    iterations_per_epoch: PositiveInt = 250
    batch_size: PositiveInt = Field(default=2, description="patches per step, those of all processes together")
    accumulate: PositiveInt = Field(
        default=1,
        description="pieces into which each process divides its patches of a step, to need less memory: their "
        "gradients are added, and are those of the whole batch",
    )
    validation_iterations: int = Field(
        default=50, ge=0, le=LARGEST, description="batches of validation patches per validated epoch"
    )
    validate_every: PositiveInt = Field(default=1, description="epochs between validations on patches")
    optimizer: Optimizer = Optimizer()
    freeze: tuple[Part, ...] = Field(
        default=(), description="parts that are not trained: no gradients, no decay, and their norms as in evaluation"
    )
    checkpointing: tuple[Part, ...] = Field(
        default=(),
        description="parts whose activations are not kept for the backward pass but computed again in it, to need less "
        "memory (activation checkpointing); the gradients are the same",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile for the network, in the first step and the first validation; wants a C++ compiler",
    )
    channels_last: bool = Field(
        default=False, description="weights and images in memory with the channels last (torch.channels_last_3d)"
    )
    cudnn_benchmark: bool = Field(
        default=False, description="CUDA: time cuDNN's algorithms for convolutions in the first step, keep the fastest"
    )
    amp: Literal["auto", "off", "bf16", "fp16"] = Field(
        default="auto", description="auto: where the device has it (CUDA)"
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay per step, such as 0.999, of an exponential moving average of the weights, which is then "
        "validated, saved and predicted with; at most (1 + n) / (10 + n) after n steps, so that the first weights are "
        "soon forgotten; null: the newest weights",
    )
    patience: PositiveInt | None = Field(
        default=None,
        description="validations in a row without a new best smoothed Dice after which training ends early, on a "
        "schedule that stays that of all epochs; null: never",
    )
    max_skipped_steps: int = Field(
        default=10,
        ge=0,
        le=LARGEST,
        description="steps with non-finite costs, loss or gradients skipped in a row before failing",
    )
    save_minutes: float = Field(
        default=10,
        ge=0,
        le=LARGEST,
        description="most minutes between two states that training goes on from; one is written after every epoch too",
    )
    seed: int = Field(default=0, ge=0, lt=2**63)

    @field_validator("freeze", "checkpointing")
    @classmethod
    def _in_the_order_of_the_network(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        return tuple(part for part in get_args(Part) if part in parts)

    @model_validator(mode="after")
    def _patience_has_validations(self) -> TrainRecipe:
        if self.patience is not None and not self.validation_iterations:
            raise ValueError(
                "patience counts validations, and validation_iterations: 0 leaves none; change one of them"
            )
        return self

    @property
    def iterations(self) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * self.iterations_per_epoch


class InferenceRecipe(Settings):
    """Sliding-window prediction."""

    overlap: float = Field(default=0.5, ge=0, lt=1, description="share of a window that its neighbour covers again")
    mirror: bool = Field(
        default=False,
        description="average over copies mirrored along the axes of data.mirror_axes and their combinations, as "
        "nnU-Net does: 2, 4 or 8 times the time",
    )
    batch_size: PositiveInt = Field(default=1, description="windows per forward pass")
    instance_threshold: Probability = Field(
        default=0.5, description="smallest class probability of a query that stands for an object (data.instances)"
    )


class ModelRecipe(Settings):
    """The five components; each is chosen by its `kind`."""

    encoder: SerializeAsAny[ComponentConfig]
    neck: SerializeAsAny[ComponentConfig]
    decoder: SerializeAsAny[ComponentConfig]
    head: SerializeAsAny[ComponentConfig]
    loss: SerializeAsAny[ComponentConfig]


class Recipe(Settings):
    """A whole experiment: the model, its data, its training and its inference."""

    schema_version: Literal[1] = Field(description="version of this format")
    name: Name
    model: ModelRecipe
    data: DataRecipe
    train: TrainRecipe
    inference: InferenceRecipe
    evaluation: MetricSettings = MetricSettings()

    @model_validator(mode="after")
    def _evaluation_names_labels(self) -> Recipe:
        problem = None if self.data.labels is None else self.evaluation.unknown_label(self.data.labels.foreground)
        if problem:
            raise ValueError(f"evaluation: {problem}")
        return self

    @property
    def labels(self) -> Labels:
        """`data.labels`; raises `RecipeError` where the recipe leaves them to a data set that it has not met."""
        if self.data.labels is None:
            raise RecipeError(f"recipe '{self.name}' leaves data.labels to the data set; state them")
        return self.data.labels

    @property
    def channels(self) -> tuple[str, ...]:
        """`data.channels`; raises `RecipeError` where the recipe leaves them to a data set that it has not met."""
        if self.data.channels is None:
            raise RecipeError(f"recipe '{self.name}' leaves data.channels to the data set; state them")
        return self.data.channels


class UnreadConfig(ComponentConfig):
    """Settings of a component that nobody needs now, kept as they stand."""

    model_config = ConfigDict(extra="allow")

    kind: str


@cache
def _recipe_type(slots: tuple[tuple[type[ComponentConfig], ...], ...]) -> type[Recipe]:
    """`Recipe` whose component slots take these configs, in the order of the kinds."""
    fields: dict[str, Any] = {}
    for kind, configs in zip(registry.COMPONENT_KINDS, slots, strict=True):
        union: Any = configs[0]
        for config in configs[1:]:
            union = union | config
        fields[kind] = (Annotated[union, Field(discriminator="kind")] if len(configs) > 1 else union, ...)
    model = create_model("ModelRecipe", __base__=ModelRecipe, __doc__=ModelRecipe.__doc__, **fields)
    return create_model("Recipe", __base__=Recipe, __doc__=Recipe.__doc__, model=(model, ...))


def recipe_type() -> type[Recipe]:
    """`Recipe` with its component slots narrowed to what is registered now (imports every component)."""
    return _recipe_type(tuple(_all_configs(kind) for kind in registry.COMPONENT_KINDS))


def recipe_type_for(content: Any, unread: Sequence[str] = ()) -> type[Recipe]:
    """`Recipe` narrowed to the components that a recipe's content names, which alone are imported.

    A slot that names none is narrowed to all there are, so that its error says what would be right; those `unread` take
    anything with a `kind`.
    """
    model: Any = content.get("model") if isinstance(content, dict) else None
    slots: list[tuple[type[ComponentConfig], ...]] = []
    for kind in registry.COMPONENT_KINDS:
        section: Any = model.get(kind) if isinstance(model, dict) else None
        name = section.get("kind") if isinstance(section, dict) else None
        is_known = isinstance(name, str) and name in registry.names(kind)
        if kind in unread and is_known:
            slots.append((UnreadConfig,))
        else:
            slots.append((registry.component(str(name), kind).Config,) if is_known else _all_configs(kind))
    return _recipe_type(tuple(slots))


def _all_configs(kind: str) -> tuple[type[ComponentConfig], ...]:
    return tuple(component.Config for component in registry.components(kind))
