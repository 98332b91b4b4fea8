"""All that stands before and after the network of an exported folder, as numbers and words: `pipeline.json`.

What is read there and what it means is the schema of `Pipeline`, docs/reference/pipeline.schema.json; a program in any
language that follows it gives the labels of `predict`. `predict_onnx.py` is one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from maskmed_zoo.data.fingerprint import Fingerprint, IntensityStats
from maskmed_zoo.data.normalize import check_fingerprint, schemes
from maskmed_zoo.data.resample import ANISOTROPIC
from maskmed_zoo.errors import ArgumentError
from maskmed_zoo.export.program import IMAGE, OUTPUT
from maskmed_zoo.files import write_json
from maskmed_zoo.inference.postprocessing import Step
from maskmed_zoo.inference.sliding_window import LOWEST_WEIGHT, SIGMA
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.recipe.schema import Axis, PatchSize, Scheme, Spacing
from maskmed_zoo.settings import PositiveInt, Settings
from maskmed_zoo.version import __version__


class Network(Settings):
    """The network's file and what goes in and out of it."""

    file: str = Field(description="beside this file")
    input: Literal["image"] = Field(
        default=IMAGE,
        description="its one input (b c d h w), float32: windows of the prepared image, as many as wanted",
    )
    output: Literal["log_probabilities"] = Field(
        default=OUTPUT, description="its one output (b k d h w), float32: natural logarithms, over k they sum to 1"
    )
    stored: Literal["float32", "float16"] = Field(description="type of the stored weights; it computes in float32")


class Normalization(Settings):
    """How one channel is normalized: clipped to `low` … `high`, less `shift`, over `divisor` (at least 1e-8)."""

    scheme: Scheme = Field(
        description="ct and none, and divisor and shift of rgb_to_0_1, are in the numbers here; zscore: mean and "
        "standard deviation (with n) of this image's channel; rescale_to_0_1: its minimum, and maximum less minimum"
    )
    low: float | None = Field(description="null: not clipped")
    high: float | None = Field(description="null: not clipped")
    shift: float | None = Field(description="null: of the image")
    divisor: float | None = Field(description="null: of the image")
    in_mask: bool = Field(
        description="zscore: of the voxels of the non-zero region with its holes filled, and only they are changed"
    )


class Resampling(Settings):
    """Between the image's voxels and the network's: grids whose outer faces coincide."""

    spacing: Spacing = Field(description="voxel size the network works at, mm, (z, y, x); round(n x from / to) voxels")
    image_order: Literal[3] = Field(
        default=3,
        description="the normalized image: a cubic spline, as scipy.ndimage.zoom with grid_mode and mode 'nearest', "
        "clipped to the range of values, along a thick axis to that of each slice",
    )
    probability_order: Literal[1] = Field(
        default=1, description="the probabilities on the way back: linear, beyond the outer centres constant"
    )
    thick_order: Literal[0] = Field(default=0, description="along the thick axis: the nearest slice, the later of two")
    anisotropic: float = Field(
        default=ANISOTROPIC,
        description="the first of the spacings, from and to, whose largest size is more than this times its smallest "
        "has a thick axis, its coarsest, if that is a single one; else there is none",
    )


class Windows(Settings):
    """The sliding window and how its outputs are put together."""

    patch_size: PatchSize = Field(description="voxels, (z, y, x); a smaller image is padded with 0, more behind")
    overlap: float = Field(
        ge=0,
        lt=1,
        description="along an axis the fewest windows, evenly spread, whose starts are at most "
        "patch x (1 - overlap) apart, rounded down; the first at 0, the last flush with the end",
    )
    batch_size: PositiveInt = Field(description="windows at a time in the recipe; any number gives the same")
    weights: Literal["gaussian"] = Field(default="gaussian", description="of a window's voxels, when averaging")
    sigma: float = Field(default=SIGMA, description="of the Gaussian about the window's centre, in sizes of the window")
    lowest_weight: float = Field(default=LOWEST_WEIGHT, description="of the largest weight, to which others are raised")
    averaged: Literal["probabilities"] = Field(default="probabilities", description="not their logarithms")
    mirrored: tuple[Axis, ...] = Field(
        default=(),
        description="axes along all combinations of which windows are flipped, and their probabilities averaged; "
        "empty: none",
    )


class Pipeline(Settings):
    """From the image of a file to its label map; the steps in the order of the keys, and back from the windows on."""

    format: Literal[2] = Field(default=2, description="version of this format")
    name: str = Field(description="of the recipe")
    made_by: str = Field(default=f"maskmed-zoo {__version__}")
    channels: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="in the order of the files NAME_0000, NAME_0001, …, all on one voxel grid"
    )
    orientation: Literal["RAS"] = Field(
        default="RAS", description="arrays are turned to the closest one: x to the right, y to anterior, z to superior"
    )
    axes: Literal["zyx"] = Field(default="zyx", description="order of an array's axes")
    crop: Literal["nonzero"] = Field(
        default="nonzero",
        description="to the box of voxels that are not 0 in any channel, or all of an empty image; "
        "background around it in the result",
    )
    normalization: tuple[Normalization, ...] = Field(description="one per channel, of the cropped image")
    resampling: Resampling = Field(description="after the normalization")
    windows: Windows
    network: Network
    labels: dict[str, int] = Field(description="name to value in the label map, which is the network's class")
    postprocessing: tuple[Step, ...] = Field(
        default=(),
        description="label by label: threshold, where the most probable label is taken: the label's probability is "
        "multiplied by (1 - at) / at before; then, of the label map, fill_holes, of background alone, connected in "
        "faces, that the label encloses off the border of the image; then, among parts connected in faces, edges and "
        "corners, remove_small, of less than below_mm3 (less a millionth), or keep_largest, of equal ones the first",
    )

    def write(self, path: Path) -> None:
        """As JSON; raises `OutputError` where it cannot be written."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        fingerprint: Fingerprint,
        steps: tuple[Step, ...] = (),
        *,
        file: str,
        stored: Literal["float32", "float16"],
    ) -> Pipeline:
        """That of a recipe; raises `ArgumentError` where more than a label map comes out, `DataError` as `schemes`."""
        if recipe.data.instances is not None:
            raise ArgumentError(
                "data.instances: separate objects are in no exported pipeline; export the run as 'weights'"
            )
        data, labels = recipe.data, recipe.labels
        chosen = schemes(data.normalization, recipe.channels)
        check_fingerprint(chosen, fingerprint, len(chosen))
        stats = fingerprint or (None,) * len(chosen)
        return cls(
            name=recipe.name,
            channels=recipe.channels,
            normalization=tuple(
                normalization(*pair, in_mask=data.use_mask_for_norm) for pair in zip(chosen, stats, strict=True)
            ),
            resampling=Resampling(spacing=data.spacing),
            windows=Windows(
                patch_size=data.patch_size,
                overlap=recipe.inference.overlap,
                batch_size=recipe.inference.batch_size,
                mirrored=data.mirror_axes if recipe.inference.mirror else (),
            ),
            network=Network(file=file, stored=stored),
            labels={name: value for value, name in enumerate(labels.names)},
            postprocessing=steps,
        )


def normalization(scheme: Scheme, stats: IntensityStats | None, *, in_mask: bool) -> Normalization:
    """That of a scheme, in numbers where they are not the image's own; `in_mask` counts for z-scores."""
    fixed = {"none": (0.0, 1.0), "rgb_to_0_1": (0.0, 255.0)}
    if scheme == "ct" and stats is not None:
        return Normalization(
            scheme=scheme,
            low=stats.percentile_00_5,
            high=stats.percentile_99_5,
            shift=stats.mean,
            divisor=stats.std,
            in_mask=False,
        )
    shift, divisor = fixed.get(scheme, (None, None))
    is_masked = in_mask and scheme == "zscore"
    return Normalization(scheme=scheme, low=None, high=None, shift=shift, divisor=divisor, in_mask=is_masked)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(Pipeline.model_json_schema(mode="serialization"), indent=1) + "\n")
