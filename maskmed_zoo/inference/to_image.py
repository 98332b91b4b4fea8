"""Probabilities at the network's spacing to a label map at the image's own, within the part of it that was seen.

Idea: interpolating probabilities and then taking the largest keeps borders smooth; interpolating labels does not. For
a hundred labels at full size the probabilities would need tens of gigabytes, so the result is made a few slices at a
time: trilinear interpolation is linear interpolation along z followed by bilinear interpolation within slices. A thick
axis takes the nearest slice instead, as in nnU-Net's export.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.data.crop import uncropped
from maskmed_zoo.data.preprocess import Region
from maskmed_zoo.data.spline import nearest_index
from maskmed_zoo.errors import JointError

CHUNK_ELEMENTS = 2**24
"""Probabilities held at full size at a time (64 MB); one slice of all labels where that is more."""


def probabilities_to_labels(
    probabilities: Tensor, shape: Sequence[int], thick: int | None = None
) -> NDArray[np.uint8 | np.uint16]:
    """Label map `shape` (d h w), the most probable label of probabilities (k z y x) resized to it.

    Trilinear with edges aligned (`align_corners=False`), but for the `thick` axis, the same as resizing all labels and
    taking the argmax up to float32 rounding. Values are label indices, uint8 up to 256 labels, else uint16. Extra
    memory: about three times `CHUNK_ELEMENTS` float32 values, not k volumes of `shape`. Raises `JointError` for a
    tensor that is not (k z y x).
    """
    if probabilities.ndim != 4 or len(shape) != 3:
        raise JointError(f"expected probabilities (k d h w) and a shape (d h w), got {tuple(probabilities.shape)}")
    labels, source = probabilities.shape[:2]
    depth, height, width = (int(n) for n in shape)
    result = np.empty((depth, height, width), np.uint8 if labels <= 256 else np.uint16)
    step = max(1, CHUNK_ELEMENTS // (labels * height * width))
    position = ((torch.arange(depth, dtype=torch.float64) + 0.5) * (source / depth) - 0.5).clamp_(0, source - 1)
    lower = position.floor().long()
    upper = (lower + 1).clamp_max(source - 1)
    fraction = (position - lower).float()
    if thick == 0:
        lower = upper = torch.from_numpy(nearest_index(source, depth))
    across = None if thick in (0, None) else nearest_index(probabilities.shape[thick + 1], (height, width)[thick - 1])
    with torch.inference_mode():
        for start in range(0, depth, step):
            part = slice(start, start + step)
            below, above = (probabilities[:, index[part].to(probabilities.device)].float() for index in (lower, upper))
            weight = fraction[part].to(probabilities.device)[None, :, None, None]
            slices = torch.lerp(below, above, weight).transpose(0, 1)  # (slices k y x)
            if across is not None and thick is not None:
                slices = slices.index_select(thick + 1, torch.from_numpy(across).to(slices.device))
            if slices.shape[2:] != (height, width):
                slices = F.interpolate(slices, size=(height, width), mode="bilinear", align_corners=False)
            result[part] = slices.argmax(1).cpu().numpy()
    return result


def resized(probabilities: Tensor, shape: Sequence[int], thick: int | None = None) -> NDArray[np.float32]:
    """Probabilities (k z y x) at `shape` (d h w) voxels over the same field of view, as `probabilities_to_labels`."""
    size = tuple(int(n) for n in shape)
    if tuple(probabilities.shape[1:]) == size:
        return probabilities.numpy()
    result = np.empty((len(probabilities), *size), np.float32)
    for label, one in enumerate(probabilities):  # one label at a time, so that little more than the result is held
        chosen = one
        if thick is not None:
            chosen = one.index_select(thick, torch.from_numpy(nearest_index(one.shape[thick], size[thick])))
        values = F.interpolate(chosen[None, None], size=size, mode="trilinear", align_corners=False)
        result[label] = values[0, 0].numpy()
    return result


@dataclass(frozen=True, eq=False)
class LabelProbabilities:
    """Probabilities of a segmented image, given label by label: name and (z y x) float32 on the image's own voxels.

    What is kept are those at the network's spacing, (k z y x) `seen` of a `region`; `names` are those of the k labels,
    background first. Outside the region all is background.
    """

    seen: Tensor
    region: Region
    names: Sequence[str]

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        region = self.region
        for index, name in enumerate(self.names):
            inside = resized(self.seen[index : index + 1], region.cropped, region.thick_back)[0]
            yield name, uncropped(inside, region.box, region.shape, fill=float(index == 0))


def nearest(array: NDArray[np.integer], shape: Sequence[int]) -> NDArray[np.integer]:
    """Integers (d h w) on a grid of `shape` voxels over the same field of view: those of the nearest voxel."""
    index = [nearest_index(n, wanted) for n, wanted in zip(array.shape, shape, strict=True)]
    return array[np.ix_(*index)]
