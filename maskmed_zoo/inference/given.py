"""What is given to a predictor as an image, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.image import Geometry, geometry_of, is_finite, is_small
from maskmed_zoo.errors import ArgumentError
from maskmed_zoo.settings import Spacing3


def given_image(
    image: NDArray[Any],
    geometry: Geometry | None,
    spacing: Spacing3 | None,
    affine: NDArray[np.float64] | None,
) -> tuple[NDArray[Any], Geometry]:
    """The image (c z y x) in a type that float32 holds, and its place."""
    try:
        array = np.asarray(image)
        if array.dtype.kind not in "biufO":
            raise TypeError(array.dtype)
        array = array if is_small(array.dtype) else np.asarray(array, np.float32)
    except (TypeError, ValueError) as error:
        what = " of ".join(str(part) for part in (type(image).__name__, getattr(image, "dtype", "")) if str(part))
        raise ArgumentError(
            f"expected an array of numbers (c z y x), got {what}; for files there is files()"
        ) from error
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or not array.size:
        raise ArgumentError(f"expected an image (c z y x), or (z y x) for one channel, got shape {array.shape}")
    if not is_finite(array):
        raise ArgumentError("the image holds NaN or infinity; replace them by a finite value")
    if not isinstance(geometry, Geometry | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"geometry is {geometry!r}, expected that of a file; give a spacing as spacing=(z, y, x)")
    if sum(given is not None for given in (geometry, spacing, affine)) != 1:
        raise ArgumentError("where do the voxels lie? give one of spacing=(z, y, x) in mm, affine= and geometry=")
    geometry = geometry or geometry_of(array, spacing=spacing, affine=affine)
    if array.shape[1:] != geometry.canonical_shape:
        raise ArgumentError(f"image of {array.shape[1:]} voxels (z, y, x), its geometry {geometry.canonical_shape}")
    return array, geometry


def check_into(into: NDArray[Any] | None, shape: tuple[int, ...]) -> None:
    """Raise `ArgumentError` for an array that cannot take probabilities (k z y x) of this shape."""
    if into is not None and not isinstance(into, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"into: expected an array of NumPy, perhaps mapped from a file, got {type(into).__name__}")
    if into is not None and not into.flags.writeable:
        raise ArgumentError("into: is read-only; map its file with mode 'r+' or 'w+'")
    if into is not None and (into.shape != shape or into.dtype.kind != "f"):
        raise ArgumentError(f"into: expected floating point numbers {shape}, got {into.dtype} {into.shape}")
