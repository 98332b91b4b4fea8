"""A volume window by window as nnU-Net sees it: logits, averaged over mirrored copies, windows and networks.

Source: nnU-Net v2 `inference/sliding_window_prediction.py` and `predict_from_raw_data.py` (Isensee et al., Nat Methods
18, 203, 2021). Sums are float16 as there, in the same order, so that they round alike; they are kept on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations, product

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.errors import JointError, NonFiniteError
from maskmed_zoo.inference.sliding_window import Place
from maskmed_zoo.settings import Size3

STEP = 0.5
"""Share of a window between neighbours, at most."""
SIGMA = 1 / 8
"""Of the Gaussian, as a share of the window."""
LARGEST_WEIGHT = 10
Network = Callable[[Tensor], Tensor]
"""Windows (b c d h w) to logits (b k d h w)."""


def window_starts(size: int, window: int) -> list[int]:
    """First voxels of the windows along an axis of `size` voxels, which is at least as long as a window."""
    span = size - window
    count = math.ceil(span / (window * STEP)) + 1
    step = span / max(count - 1, 1)
    return [int(np.round(step * index)) for index in range(count)]


def importance(window: Size3) -> Tensor:
    """(d h w) float16 weights of a window's voxels: a Gaussian around the middle, 10 at most and 0 nowhere."""
    peak = np.zeros(window)
    peak[tuple(size // 2 for size in window)] = 1
    weights = ndimage.gaussian_filter(peak, [size * SIGMA for size in window], mode="constant")
    found = torch.from_numpy(weights / (weights.max() / LARGEST_WEIGHT)).half()
    return found.masked_fill(found == 0, found[found > 0].min())


def mirrored(network: Network, image: Tensor, axes: Sequence[int]) -> Tensor:
    """Mean logits (b k d h w) of an image (b c d h w) as it is and flipped along every choice of the spatial `axes`."""
    total = network(image)
    flips = [choice for count in range(len(axes)) for choice in combinations([a + 2 for a in axes], count + 1)]
    for flip in flips:
        total += network(image.flip(flip)).flip(flip)
    return total.div_(len(flips) + 1) if flips else total


@torch.inference_mode()
def window_logits(
    networks: Sequence[Network],
    image: Tensor,
    window: Size3,
    num_classes: int,
    *,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
) -> Tensor:
    """Logits (k d h w) float16 of a normalized image (c d h w) float32, both on the CPU, the mean over the networks.

    An image smaller than the window is padded with zeros on both sides. Memory: two maps of logits for several
    networks, one for one. Raises `JointError` for an output of another shape, `NonFiniteError` for logits that are
    NaN, infinite or beyond float16.
    """
    missing = [max(0, w - n) for w, n in zip(window, image.shape[1:], strict=True)]
    padding = [(m // 2, m - m // 2) for m in missing]
    if any(missing):
        image = F.pad(image, [side for sides in reversed(padding) for side in sides])
    places = _places(image.shape[1:], window)
    weights = importance(window)
    norm = torch.zeros(image.shape[1:], dtype=torch.half)
    for place in places:
        norm[place] += weights
    total: Tensor | None = None
    for network in networks:
        says = partial(mirrored, network, axes=mirror_axes)
        found = _summed(says, image, places, weights.to(device), num_classes).div_(norm)
        total = found if total is None else total.add_(found)
        del found
    if total is None:
        raise JointError("expected a network, or several, got none")
    if len(networks) > 1:
        total.div_(len(networks))
    if not all(bool(label.isfinite().all()) for label in total):
        raise NonFiniteError("the network's logits hold NaN or infinity, or are beyond float16")
    inner = [slice(before, n - after) for (before, after), n in zip(padding, image.shape[1:], strict=True)]
    return total[(slice(None), *inner)]


def _places(size: Sequence[int], window: Size3) -> list[Place]:
    starts = product(*(window_starts(n, w) for n, w in zip(size, window, strict=True)))
    return [(slice(z, z + window[0]), slice(y, y + window[1]), slice(x, x + window[2])) for z, y, x in starts]


def _summed(says: Network, image: Tensor, places: Sequence[Place], weights: Tensor, num_classes: int) -> Tensor:
    """The weighted sum of the logits of one network's windows (k d h w), float16."""
    total = torch.zeros((num_classes, *image.shape[1:]), dtype=torch.half)
    for place in places:
        logits = says(image[(slice(None), *place)][None].to(weights.device))[0]
        if tuple(logits.shape) != (num_classes, *weights.shape):
            raise JointError(f"the network gave logits of shape {tuple(logits.shape)} for a window")
        total[(slice(None), *place)] += logits.mul_(weights).cpu()
    return total
