"""The composed network: encoder → neck → decoder → head, every joint checked from specs before any data flows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskmed_zoo import registry
from maskmed_zoo.contracts import (
    Component,
    ComponentConfig,
    Decoder,
    Encoder,
    FeatureSpec,
    Head,
    HeadOutput,
    Loss,
    Neck,
    ParameterGroup,
    StageOutput,
)
from maskmed_zoo.errors import JointError
from maskmed_zoo.recipe.schema import ModelRecipe, UnreadConfig
from maskmed_zoo.settings import Spacing3

_T = TypeVar("_T", bound=Component)
PARTS = ("encoder", "neck", "decoder", "head")


class SegmentationModel(nn.Module):
    """Encoder, neck, decoder and head as one network.

    `head_of` makes the same head for another number of labels, perhaps with a set number of queries, and `encoder_of`
    the same encoder for another number of channels: so is found what the rows of a parameter stand for. In training,
    parts in `checkpointed` keep no activations for the backward pass, which computes them again.
    Raises `JointError` if the parts do not fit, and in `forward` if the image does not.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        neck: Neck,
        decoder: Decoder,
        head: Head,
        in_channels: int,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        channel_names: Sequence[str] | None = None,
        head_of: Callable[..., Head] | None = None,
        encoder_of: Callable[[int], Encoder] | None = None,
    ) -> None:
        super().__init__()
        if neck.out_spec != encoder.out_spec:
            raise JointError(
                f"a neck must keep the encoder's levels: it got {encoder.out_spec} and gives {neck.out_spec}"
            )
        if class_names is not None and len(class_names) != num_classes:
            raise JointError(f"{len(class_names)} class names for {num_classes} classes: {list(class_names)}")
        self.encoder, self.neck, self.decoder, self.head = encoder, neck, decoder, head
        self.in_channels, self.num_classes = in_channels, num_classes
        self.class_names = None if class_names is None else tuple(class_names)
        self.channel_names = None if channel_names is None else tuple(channel_names)
        self.frozen: tuple[str, ...] = ()
        self.checkpointed: tuple[str, ...] = ()
        self._head_of, self._encoder_of = head_of, encoder_of

    def forward(self, image: Tensor, prior: Tensor | None = None) -> HeadOutput:
        """Image (b c d h w), d h w divisible by the encoder's total stride, to the head's output at every stage.

        `prior`: that of a `Loss`, in training.
        """
        if image.ndim != 5 or image.shape[1] != self.in_channels:
            raise JointError(
                f"expected an image (batch, {self.in_channels}, depth, height, width), got {tuple(image.shape)}"
            )
        self.encoder.out_spec.check_patch(image.shape[2:])
        check_precision(self, image)
        levels = self._run("neck", self._run("encoder", image))
        return self._run("head", self._run("decoder", levels), *(() if prior is None else (prior,)))

    def _run(self, part: str, *given: Any) -> Any:
        """A part, whose activations are made again in the backward pass if it is `checkpointed`."""
        module = getattr(self, part)
        if part in self.checkpointed and self.training and torch.is_grad_enabled():
            return checkpoint(module, *given, use_reentrant=False)
        return module(*given)

    def predict(self, image: Tensor) -> Tensor:
        """Image (b c d h w) to float32 log-probabilities (b k d h w), normalized over k and floored before the log."""
        return self(image).log_probabilities()

    def parameter_groups(self) -> dict[ParameterGroup, list[nn.Parameter]]:
        """Trainable parameters by learning-rate group (MaskMed §4), each parameter in exactly one group.

        The group follows from the component a parameter belongs to, not from its name.
        """
        groups: dict[ParameterGroup, list[nn.Parameter]] = {"cnn": [], "transformer": []}
        for part in self.parts().values():
            groups[part.parameter_group] += [p for p in part.parameters() if p.requires_grad]
        grouped = [id(p) for group in groups.values() for p in group]
        if len(set(grouped)) != len(grouped) or set(grouped) != {id(p) for p in self.parameters() if p.requires_grad}:
            raise JointError("parameter groups must hold every trainable parameter of the model exactly once")
        return groups

    def freeze(self, parts: Sequence[str]) -> None:
        """Train nothing of these parts from now on: no gradients, and `train` leaves them in evaluation mode.

        Raises `JointError` if nothing is left to train.
        """
        self.frozen = tuple(parts)
        for name in self.frozen:
            self.parts()[name].requires_grad_(False)
        if not any(p.requires_grad for p in self.parameters()):
            raise JointError(f"train.freeze: nothing is left to train without {', '.join(parts)}; take one of them out")
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As usual, but frozen parts stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.parts()[name].eval()
        return self

    def label_axes(self) -> dict[str, tuple[int, ...]] | None:
        """By name of a parameter, the axes along which its rows are the labels', perhaps with "no object" after them.

        Those are what one label more, or one less, adds a row to; None for a network that `build_model` did not make.
        """
        if self._head_of is None:
            return None
        for step in (1, -1):  # a head with a set number of queries may have none for one more
            try:
                with torch.device("meta"):
                    other = self._head_of(self.num_classes + step)
            except JointError:
                continue
            return _growing(self.head, other, "head.", step) or None
        return None

    def query_axes(self) -> dict[str, tuple[int, ...]]:
        """By name of a parameter, the axes along which its rows are the queries', as `label_axes`."""
        if self._head_of is None or self.head.num_queries is None:
            return {}
        with torch.device("meta"):
            other = self._head_of(self.num_classes, num_queries=self.head.num_queries + 1)
        return _growing(self.head, other, "head.", 1)

    def channel_axes(self) -> dict[str, tuple[int, ...]]:
        """By name of a parameter, the axes along which its rows are the input channels', as `label_axes`."""
        if self._encoder_of is None:
            return {}
        with torch.device("meta"):
            other = self._encoder_of(self.in_channels + 1)
        return _growing(self.encoder, other, "encoder.", 1)

    def parts(self) -> dict[str, Component]:
        """Encoder, neck, decoder and head by name."""
        return {name: getattr(self, name) for name in PARTS}


class LogitsModel(nn.Module):
    """A network of this package as others expect one: it gives a tensor; see `maskmed_zoo.as_logits`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Image (b c d h w) to (b k d h w): logits where the head has any, else float32 log-probabilities."""
        final: StageOutput = self.model(image).stages[0]
        return final.log_probabilities() if final.logits is None else final.logits


def build_model(
    recipe: ModelRecipe,
    *,
    in_channels: int,
    num_classes: int,
    spacing: Spacing3,
    class_names: Sequence[str] | None = None,
    channel_names: Sequence[str] | None = None,
) -> SegmentationModel:
    """The network of a recipe; raises `JointError` where two components, or head and loss, do not fit."""
    check_loss(recipe)
    encoder_of = partial(_encoder, recipe.encoder)
    encoder = encoder_of(in_channels)
    neck = _make(recipe.neck, Neck, in_spec=encoder.out_spec, spacing=spacing)
    decoder = _make(recipe.decoder, Decoder, in_spec=neck.out_spec)
    head_of = partial(_head, recipe.head, decoder.out_spec, spacing)
    return SegmentationModel(
        encoder=encoder,
        neck=neck,
        decoder=decoder,
        head=head_of(num_classes),
        in_channels=in_channels,
        num_classes=num_classes,
        class_names=class_names,
        channel_names=channel_names,
        head_of=head_of,
        encoder_of=encoder_of,
    )


def build_loss(recipe: ModelRecipe, *, num_classes: int, ignore_label: int | None) -> Loss:
    """The loss of a recipe; settings that were not read are now."""
    config = recipe.loss
    if isinstance(config, UnreadConfig):
        config = _class(config, Loss).Config.model_validate(config.model_dump())
    return _make(config, Loss, num_classes=num_classes, ignore_label=ignore_label)


def check_loss(recipe: ModelRecipe) -> None:
    """Raise `JointError` if the loss cannot take what the head gives; nothing is known of one that was not read."""
    if isinstance(recipe.loss, UnreadConfig):
        return
    head, loss = _class(recipe.head, Head), _class(recipe.loss, Loss)
    if head.gives != loss.accepts:
        losses = [loss for loss in registry.components("loss") if issubclass(loss, Loss)]
        fitting = [loss.Config.model_fields["kind"].default for loss in losses if loss.accepts == head.gives]
        raise JointError(
            f"loss '{_kind(recipe.loss)}' takes {loss.accepts}, head '{_kind(recipe.head)}' gives {head.gives}; "
            f"write 'kind: {' or '.join(fitting)}' under model.loss"
        )


def _encoder(config: ComponentConfig, in_channels: int) -> Encoder:
    return _make(config, Encoder, in_channels=in_channels)


def _head(
    config: ComponentConfig,
    in_spec: FeatureSpec,
    spacing: Spacing3,
    num_classes: int,
    *,
    num_queries: int | None = None,
) -> Head:
    if num_queries is not None and "num_queries" in type(config).model_fields:
        config = config.model_copy(update={"num_queries": num_queries})
    return _make(config, Head, in_spec=in_spec, num_classes=num_classes, spacing=spacing)


def _growing(part: nn.Module, other: nn.Module, prefix: str, step: int) -> dict[str, tuple[int, ...]]:
    """By name of a parameter, with `prefix`, the axes along which `other` has `step` rows more; only those with any."""
    grown, found = dict(other.named_parameters()), dict[str, tuple[int, ...]]()
    for name, parameter in part.named_parameters():
        shape = grown.get(name.replace("_orig_mod.", ""), parameter).shape  # of a compiled part
        axes = enumerate(zip(parameter.shape, shape, strict=False))
        found[f"{prefix}{name}"] = tuple(axis for axis, (a, b) in axes if b - a == step)
    return {name: axes for name, axes in found.items() if axes}


def _kind(config: ComponentConfig) -> str:
    return str(getattr(config, "kind", type(config).__name__))


def _class(config: ComponentConfig, base: type[_T]) -> type[_T]:
    cls = registry.component(_kind(config), base.__name__.lower())
    if not issubclass(cls, base):
        raise JointError(f"'{_kind(config)}' is no {base.__name__.lower()}")
    return cls


def _make(config: ComponentConfig, base: type[_T], **context: Any) -> _T:
    part = _class(config, base)(config=config, **context)
    if "out_spec" in base.__annotations__ and not hasattr(part, "out_spec"):
        raise JointError(f"{base.__name__.lower()} '{_kind(config)}' sets no out_spec; set it in __init__")
    return part


def check_precision(model: nn.Module, image: Tensor) -> None:
    """Raise `JointError` if the image has another type than the weights, and no autocast makes them one."""
    weights, kind = next((p.dtype for p in model.parameters()), image.dtype), image.device.type
    if image.dtype == weights:
        return
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        raise JointError(f"the image is {image.dtype}, the network's weights {weights}; give image.to({weights})")


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """Number of scalars in the parameters."""
    return sum(p.numel() for p in parameters)
