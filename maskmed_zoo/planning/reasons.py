"""Why each planned number is what it is, in words, by its path in the recipe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskmed_zoo.data.fingerprint import DatasetFingerprint
from maskmed_zoo.labels import Labels
from maskmed_zoo.planning.budget import Budget, shown
from maskmed_zoo.planning.choose import RESERVE, Choice
from maskmed_zoo.planning.grid import THICK, THICK_PERCENTILE, Grid
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.recipe.schema import Scheme
from maskmed_zoo.settings import Size3

AXES = ("z", "y", "x")
SMALL = 0.75
"""Share of the voxels that the crop leaves, in the median, below which z-scores are those of the non-zero region."""
_WHAT: dict[Scheme, str] = {
    "ct": "clipped to the percentiles 0.5 and 99.5 of the foreground, minus its mean, over its standard deviation",
    "zscore": "minus the mean of each image, over its standard deviation",
    "none": "as it is in the file",
    "rescale_to_0_1": "from the smallest value of each image to its largest",
    "rgb_to_0_1": "divided by 255",
}


def reasons(choice: Choice, grid: Grid, budget: Budget, fingerprint: DatasetFingerprint) -> dict[str, str]:
    """Comments by path."""
    recipe = choice.recipe
    found = {
        "data.spacing": _spacing(grid, fingerprint),
        "data.patch_size": f"voxels, z y x. The images have {_times(grid.shape)} in the median at this spacing; "
        f"{choice.limits}. {_memory(choice, budget)}",
        "data.normalization": _normalization(recipe, fingerprint),
        "data.use_mask_for_norm": _mask(fingerprint),
        "data.mirror_axes": _mirror(recipe.labels),
        "train.batch_size": f"{choice.batch_limits}.",
    }
    return found | _levels(choice, grid)


def _levels(choice: Choice, grid: Grid) -> dict[str, str]:
    model, levels = choice.recipe.model, choice.levels
    coarsest = _times([side // _product(levels.strides, axis) for axis, side in enumerate(levels.patch)])
    texts = {
        "strides": "Over the level above. An axis is halved as long as it keeps 4 voxels and is less than twice as "
        f"coarse as the finest: {_late(levels.strides[1:], 1) or 'every one from the start'}. The coarsest level has "
        f"{coarsest} voxels.",
        "kernels": "3 along an axis from the level on at which it is less than twice as coarse as the finest: "
        f"{_late(levels.kernels, 0) or 'everywhere'}.",
        "channels": "Doubling from level to level, up to ten times the finest.",
        "blocks": "Those of the recipe this plan is made from, for every level.",
        "img_size": "The patch: the position table is made for it.",
        "z_factors": "z is thick, so it is halved later than y and x.",
    }
    if not hasattr(model.encoder, "strides"):
        total = tuple(_product(levels.strides, axis) for axis in range(3))
        texts = {name: text for name, text in texts.items() if name in ("img_size", "z_factors")}
        texts["kind"] = f"Its strides are its own: a patch is a multiple of {_times(total)}, z y x."
    if getattr(model.encoder, "z_factors", None) is None or grid.spacing[0] < 2 * min(grid.spacing):
        texts.pop("z_factors")  # nothing was planned
    found = {f"model.encoder.{name}": text for name, text in texts.items() if hasattr(model.encoder, name)}
    if hasattr(model.decoder, "kernels"):
        found["model.decoder.kernels"] = "As the encoder's, by the same rule; none for the coarsest level."
    if hasattr(model.neck, "query_levels"):
        found["model.neck.query_levels"] = f"The lowest of {len(levels.strides)} levels, the finest never."
    return found


def _spacing(grid: Grid, fingerprint: DatasetFingerprint) -> str:
    every = np.array(fingerprint.spacings)
    spread = ", ".join(
        f"{axis} {low:g} to {high:g}" if low != high else f"{axis} {low:g}"
        for axis, low, high in zip(AXES, every.min(0), every.max(0), strict=True)
    )
    text = f"mm, z y x: the median of {grid.cases} cases ({spread})"
    if grid.thick is None:
        return f"{text}; no axis is {THICK} times as coarse as each other one."
    middle = float(np.median(every[:, grid.thick]))
    return (
        f"{text}, but along {AXES[grid.thick]}: that axis is thick, {middle:g} mm in the median, over {THICK} times "
        f"the others', with less than 1/{THICK} of their voxels, so its percentile {THICK_PERCENTILE} is taken."
    )


def _memory(choice: Choice, budget: Budget) -> str:
    precision = "16-bit" if budget.narrow else "32-bit"
    counted = f"A training step is estimated at {shown(choice.bytes)} with {precision} activations"
    if choice.reference is not None:
        return f"{counted}; nnU-Net's own measure decided."
    return f"{counted}, of {shown(budget.bytes)} ({budget.origin}), {RESERVE:.0%} of which are kept back."


def _normalization(recipe: Recipe, fingerprint: DatasetFingerprint) -> str:
    given = recipe.data.normalization
    schemes: Sequence[Scheme] = given if isinstance(given, tuple) else ()
    parts: list[str] = []
    for index, (channel, scheme) in enumerate(zip(recipe.channels, schemes, strict=True)):
        numbers = ""
        if scheme == "ct":
            stats = fingerprint.intensities[index]
            numbers = (
                f" ({stats.percentile_00_5:.6g} … {stats.percentile_99_5:.6g}, {stats.mean:.6g}, {stats.std:.6g} "
                f"over all cases)"
            )
        parts.append(f"'{channel}' by its name: {_WHAT[scheme]}{numbers}")
    return "; ".join(parts) + "."


def _mask(fingerprint: DatasetFingerprint) -> str:
    share = fingerprint.median_relative_size
    rule = "below" if share < SMALL else "not below"
    return f"The non-zero region is {share:.2f} of an image in the median, {rule} {SMALL}, nnU-Net's threshold."


def _mirror(labels: Labels) -> str:
    if not labels.pairs:
        return "Every axis, as in nnU-Net: no two labels are a left/right pair."
    left, right = labels.pairs[0]
    more = f", and {len(labels.pairs) - 1} more such pairs" if len(labels.pairs) > 1 else ""
    return f"Never x: '{left}' and '{right}'{more} differ by their side alone, which nnU-Net's mirroring exchanges."


def _late(steps: Sequence[Size3], first: int) -> str:
    """The axes along which the first steps are 1, and from which level on they are not."""
    texts: list[str] = []
    for place, axis in enumerate(AXES):
        level = next((level for level, step in enumerate(steps, first) if step[place] > 1), None)
        if level != first:
            texts.append(f"{axis} {'never' if level is None else f'from level {level} on'}")
    return " and ".join(texts)


def _product(strides: Sequence[Size3], axis: int) -> int:
    return int(np.prod([step[axis] for step in strides]))


def _times(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
