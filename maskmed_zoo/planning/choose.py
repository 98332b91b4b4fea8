"""The largest patch, with its levels and batch, that a network takes within a budget.

Idea: which patches come into question follows from spacing and shape alone (`levels`); the first that fits with two
images is taken, and what memory is left goes into the batch, up to a twentieth of the data set's voxels. nnU-Net's own
networks are measured as nnU-Net does (`nnunet`), every other one by its memory (`footprint`), where the first that fits
is found by bisection: they shrink in turn.
Source: nnU-Net v2, `ExperimentPlanner.get_plans_for_configuration` (Isensee et al., Nat Methods 18, 203, 2021).
Deviation: a quarter of the budget is kept back for what `footprint` does not count; there is no second configuration at
low resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from maskmed_zoo.build import model_of
from maskmed_zoo.contracts import PlannedLevels
from maskmed_zoo.encoders.pyramid import PyramidConfig
from maskmed_zoo.errors import DataError, JointError, UserError
from maskmed_zoo.memory import GIB
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.planning.budget import Budget, enough, shown
from maskmed_zoo.planning.footprint import StepMemory
from maskmed_zoo.planning.grid import Grid
from maskmed_zoo.planning.levels import SHORTEST, Order, multiples, shrinking
from maskmed_zoo.planning.nnunet import SHARE, SMALLEST_BATCH, Reference, feature_voxels, most_of_data, reference_of
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.settings import Size3

RESERVE = 0.25
"""Of the budget, not planned with: kernels' own memory, an allocator's gaps, a GPU's context."""


@dataclass(frozen=True)
class Choice:
    """The recipe with patch, levels and batch; why they are not larger, in words; bytes of a step by `footprint`."""

    recipe: Recipe
    levels: PlannedLevels
    limits: str
    batch_limits: str
    bytes: int
    reference: Reference | None


def choose(recipe: Recipe, grid: Grid, budget: Budget) -> Choice:
    """Plan the network of a recipe that states channels, labels and spacing.

    Raises `DataError` for images too small for two levels, `UserError` for a budget below the smallest patch.
    """
    tried = _candidates(recipe, grid)
    if not tried:
        shape = " x ".join(f"{side:g}" for side in grid.shape)
        raise DataError(
            f"the images, {shape} voxels (z, y, x) at the median spacing, are too small for two levels; along an axis "
            f"they need at least {3 * SHORTEST}"
        )
    reference = reference_of(recipe.model, budget.gib)
    if reference is not None:
        return _own(recipe, tried, grid, budget, reference)
    return _by_memory(recipe, tried, grid, budget)


def _own(recipe: Recipe, tried: Sequence[PlannedLevels], grid: Grid, budget: Budget, reference: Reference) -> Choice:
    """One of nnU-Net's networks, exactly as its planner has it."""
    allowed, labels = reference.allowed(budget.gib), len(recipe.labels)
    needs = ((levels, feature_voxels(recipe.model, levels, labels)) for levels in tried)
    levels, need = next(((levels, need) for levels, need in needs if need <= allowed), (tried[-1], 0))
    if not need:
        least = feature_voxels(recipe.model, levels, labels) / reference.voxels * reference.gib
        smallest = _step(_fitted(recipe, levels, SMALLEST_BATCH), budget).bytes(levels.patch, SMALLEST_BATCH)
        raise _too_small(levels, max(least * GIB, smallest), budget)
    fits = round(allowed / need * SMALLEST_BATCH)
    batch, why = _batch(fits, grid, levels, reference.share)
    planned = _fitted(recipe, levels, batch)
    limits = (
        f"two patches have {need / 1e6:.0f} million voxels of feature maps, of the {allowed / 1e6:.0f} that "
        f"{reference.name} allows for {shown(budget.bytes)}"
    )
    memory = _step(planned, budget).bytes(levels.patch, batch)
    return Choice(planned, levels, _limits(tried, levels, limits), why, memory, reference)


def _by_memory(recipe: Recipe, tried: Sequence[PlannedLevels], grid: Grid, budget: Budget) -> Choice:
    """Any other network, by what a step needs."""
    most = budget.bytes * (1 - RESERVE)
    steps: dict[str, StepMemory] = {}

    def need(index: int, batch: int) -> int:
        fitted = _fitted(recipe, tried[index], SMALLEST_BATCH)
        network = fitted.model.model_dump_json()  # the same for many patches
        if network not in steps:
            steps[network] = _step(fitted, budget)
        return steps[network].bytes(tried[index].patch, batch)

    low, high = 0, len(tried) - 1
    if need(low, SMALLEST_BATCH) <= most:
        high = low
    elif (least := need(high, SMALLEST_BATCH)) > most:
        raise _too_small(tried[-1], least / (1 - RESERVE), budget)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if need(middle, SMALLEST_BATCH) <= most else (middle + 1, high)
    levels, two = tried[low], need(low, SMALLEST_BATCH)
    each = max(1, need(low, SMALLEST_BATCH + 1) - two)
    fits = SMALLEST_BATCH + int((most - two) // each)
    batch, why = _batch(fits, grid, levels, SHARE)
    limits = f"two of them need {shown(two)}, one more {shown(each)}, of {shown(most)}"
    planned = _fitted(recipe, levels, batch)
    return Choice(planned, levels, _limits(tried, levels, limits), why, need(low, batch), None)


def _step(recipe: Recipe, budget: Budget) -> StepMemory:
    return StepMemory(_on_meta(recipe), recipe, narrow=budget.narrow)


def _on_meta(recipe: Recipe) -> SegmentationModel:
    with torch.device("meta"):
        return model_of(recipe)


def _candidates(recipe: Recipe, grid: Grid) -> list[PlannedLevels]:
    """The patches that come into question, largest first, with the levels the network would have."""
    order = Order.of(grid.spacing)
    spacing, shape = order.there(grid.spacing), order.there(grid.shape)
    if isinstance(recipe.model.encoder, PyramidConfig):
        return [order.levels_back(levels) for levels in shrinking(spacing, shape)]
    strides = [order.there(step) for step in _own_strides(recipe, grid)]
    return [order.levels_back(levels) for levels in multiples(spacing, shape, strides)]


def _own_strides(recipe: Recipe, grid: Grid) -> list[Size3]:
    """Strides over the level above of an encoder that sets them itself, told which axis is thick."""
    strides = _steps(_on_meta(recipe).encoder.out_spec.strides)
    wished, spacing = [strides[0]], list(grid.spacing)
    for step in strides[1:]:
        z, y, x = (s if mm / min(spacing) < 2 else 1 for s, mm in zip(step, spacing, strict=True))
        wished.append((z, y, x))
        spacing = [mm * s for mm, s in zip(spacing, (z, y, x), strict=True)]
    patch = recipe.data.patch_size
    told = recipe.model.encoder.fitted(PlannedLevels(tuple(wished), ((3, 3, 3),) * len(wished), patch, grid.spacing))
    if told == recipe.model.encoder:
        return strides
    try:
        fitted = load_recipe(recipe, {"model.encoder": told.model_dump(mode="json")})
        return _steps(_on_meta(fitted).encoder.out_spec.strides)
    except JointError:  # a backbone that has one such setting for all of its levels
        return strides


def _steps(strides: Sequence[Size3]) -> list[Size3]:
    found = [(1, 1, 1)]
    for above, below in pairwise(strides):
        found.append((below[0] // above[0], below[1] // above[1], below[2] // above[2]))
    return found


def _fitted(recipe: Recipe, levels: PlannedLevels, batch: int) -> Recipe:
    """The recipe with these levels, patch and batch."""
    parts = {"encoder": recipe.model.encoder, "neck": recipe.model.neck, "decoder": recipe.model.decoder}
    settings = {f"model.{name}": part.fitted(levels).model_dump(mode="json") for name, part in parts.items()}
    return load_recipe(recipe, settings | {"data.patch_size": list(levels.patch), "train.batch_size": batch})


def _batch(fits: int, grid: Grid, levels: PlannedLevels, share: float) -> tuple[int, str]:
    most = most_of_data(levels.patch, grid.voxels, share)
    batch = max(min(fits, most), SMALLEST_BATCH)
    limit = f"{share:.0%} of the data set's voxels are {f'{most} patches' if most else 'less than one patch'}"
    if batch == SMALLEST_BATCH and most < SMALLEST_BATCH:
        return batch, f"At least {SMALLEST_BATCH}; {limit}"
    if most < fits:
        return batch, f"{limit}, and no step sees more; memory would take {fits}"
    return batch, f"The memory takes {max(fits, SMALLEST_BATCH)} patches; {limit}"


def _limits(tried: Sequence[PlannedLevels], levels: PlannedLevels, limits: str) -> str:
    first = "the largest that the images ask for" if levels == tried[0] else "memory limits it, the images ask for "
    return f"{first}{'' if levels == tried[0] else ' x '.join(map(str, tried[0].patch))}: {limits}"


def _too_small(levels: PlannedLevels, least: float, budget: Budget) -> UserError:
    patch = " x ".join(map(str, levels.patch))
    return UserError(
        f"memory: {shown(budget.bytes)} ({budget.origin}) is too little: the smallest patch, {patch} voxels, needs "
        f"{enough(least)} for a batch of {SMALLEST_BATCH}; give at least that, or a smaller network as --recipe"
    )
