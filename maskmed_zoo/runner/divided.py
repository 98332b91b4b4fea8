"""The batch of a step, divided among processes and, in each, into pieces whose gradients add up.

`train.batch_size` is the whole batch. Process r of n takes its patches r, r + n, r + 2 n, … and goes through them in
`train.accumulate` pieces. Loss and gradients are those of the undivided batch, because losses divide by what they count
in the whole of it (`Loss.counts`).

What is drawn at random in a step (dropout, sampled points) follows from the seed, the step and the piece, so a run goes
on with another number of processes as if nothing had happened where nothing is drawn, else with other draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]  # what all batch norms are

from maskmed_zoo import distributed
from maskmed_zoo.contracts import Loss
from maskmed_zoo.errors import JointError, RecipeError

if TYPE_CHECKING:
    from maskmed_zoo.recipe import Recipe

Piece = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Image (b c d h w), labels (b d h w), annotated (b k) and instances (b d h w) of some samples of a batch."""


def number_of_pieces(recipe: Recipe) -> int:
    """How many pieces a batch is divided into, over all processes."""
    return distributed.size() * recipe.train.accumulate


def check_divisible(recipe: Recipe, model: nn.Module, loss: Loss) -> None:
    """Raise `RecipeError` or `JointError` if a batch of this recipe, network and loss cannot be divided as asked."""
    pieces, config = number_of_pieces(recipe), recipe.train
    if pieces == 1:
        return
    asked = f"{distributed.size()} processes x train.accumulate {config.accumulate}"
    if config.batch_size % pieces:
        near = max(pieces, round(config.batch_size / pieces) * pieces)
        raise RecipeError(
            f"train.batch_size: {config.batch_size} patches cannot be divided among {asked} = {pieces}; give a "
            f"multiple of {pieces}, such as {near}, or other numbers of these"
        )
    kind = getattr(recipe.model.loss, "kind", type(loss).__name__)
    if type(loss).counts is Loss.counts:
        raise JointError(
            f"loss '{kind}' does not say what it divides by, so a batch cannot be divided among {asked}; give it the "
            f"method 'counts', or train in one process with train.accumulate 1"
        )
    norms = (name for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.training)
    name = next(norms, None)  # in a frozen part it is in evaluation mode, and the batch means nothing to it
    if name is not None:
        raise JointError(
            f"the network has batch norm ('{name}'), whose statistics would be of a part of the batch with {asked}; "
            f"choose an encoder without it, or train in one process with train.accumulate 1"
        )


def own_indices(first: int, last: int) -> range:
    """The patches of this process among those from `first` to before `last`."""
    return range(first + distributed.rank(), last, distributed.size())


def in_pieces(image: Tensor, *others: Tensor | None, pieces: int) -> list[Piece]:
    """This process's samples of a batch in so many equal pieces."""
    size = len(image) // pieces
    rows = [[None] * pieces if x is None else x.split(size) for x in (image, *others)]
    return cast(list[Piece], list(zip(*rows, strict=True)))


def seed_piece(seed: int, iteration: int, piece: int) -> None:
    """Set PyTorch's generators for piece number `piece` of this process in a step."""
    number = piece * distributed.size() + distributed.rank()
    state = np.random.SeedSequence([seed, iteration, number]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))
