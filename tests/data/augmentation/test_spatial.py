"""Rotation and zoom against nnU-Net's own: the box, the matrix, image and labels under the same parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import (
    SpatialTransform,
    create_affine_matrix_2d,
    create_affine_matrix_3d,
)
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from numpy.typing import NDArray

from maskmed_zoo.data.augmentation.nnunet import NNUNet
from maskmed_zoo.data.augmentation.spatial import box_size, matrix_of
from maskmed_zoo.data.crop import OUTSIDE
from maskmed_zoo.data.sampling import window
from maskmed_zoo.settings import Size3

THICK = ((4.0, 1.0, 1.0), (1.0, 4.0, 1.0), (1.0, 1.0, 4.0))


def volume(shape: Size3, labels: int = 3, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """An image of two channels, and labels in blobs, 0 for most."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    image = rng.normal(size=(2, *shape)).astype(np.float32)
    smooth = np.stack([gaussian_filter(rng.normal(size=shape), 3) for _ in range(labels)])
    smooth[0] += np.quantile(smooth[1:].max(0) - smooth[0], 0.6)
    return image, smooth.argmax(0).astype(np.int16)


def reader(image: NDArray[Any], *maps: NDArray[Any]) -> Any:
    """What a policy reads from."""

    def read(start: Size3, size: Size3) -> tuple[torch.Tensor, NDArray[Any]]:
        inside, padding = window(maps[0].shape, start, size)
        outsides = (OUTSIDE, 0)
        read_maps = [np.pad(m[inside], padding, constant_values=o) for m, o in zip(maps, outsides, strict=False)]
        pad = [(0, 0), *padding]
        return torch.from_numpy(np.pad(image[(slice(None), *inside)], pad)), np.stack(read_maps)

    return read


class Draws:
    """A generator that gives what it is told: whether to rotate, whether to zoom, angles, zoom."""

    def __init__(self, angles: Any, zoom: float | None) -> None:
        self.chances = [0.0 if angles is not None else 1.0, 0.0 if zoom is not None else 1.0]
        self.values = [np.asarray(angles)] * (angles is not None) + [zoom] * (zoom is not None)

    def random(self) -> float:
        return self.chances.pop(0)

    def uniform(self, *_: Any) -> Any:
        return self.values.pop(0)


@pytest.mark.parametrize("patch", [(40, 56, 40), (128, 128, 128), (64, 160, 112), (20, 256, 224), (7, 9, 3)])
@pytest.mark.parametrize("coarsest", [0, 1, 2])
def test_box_is_nnunets_initial_patch(patch: Size3, coarsest: int) -> None:
    first = (patch[coarsest], *(n for axis, n in enumerate(patch) if axis != coarsest))
    in_plane = max(first) / first[0] > 3
    angle = math.radians(180 if in_plane else 30)
    limits = (-angle, angle)
    expected = get_patch_size(first, limits, limits, limits, (0.85, 1.25))
    if in_plane:
        expected[0] = first[0]
    got = box_size(patch, coarsest, in_plane)
    policy = NNUNet(patch, THICK[coarsest])
    assert (policy.box, policy.in_plane, policy.coarsest) == (got, in_plane, coarsest)
    assert [got[coarsest], *(n for axis, n in enumerate(got) if axis != coarsest)] == expected.tolist()


CASES: list[tuple[Any, float | None]] = [
    ((0.4, -0.3, 0.2), None),
    ((-0.1, 0.5, -0.52), 1.4),
    ((0.5, 0.5, 0.5), 0.7),
    (None, 0.7),
    (None, 1.37),
    (None, None),
]


@pytest.mark.parametrize(("angles", "zoom"), CASES)
@pytest.mark.parametrize("start", [(-3, 4, -6), (10, 8, 12)])
@pytest.mark.parametrize("labels", [2, 4])
def test_equals_theirs_in_space(angles: Any, zoom: float | None, start: Size3, labels: int) -> None:
    patch = (16, 20, 15)
    policy = NNUNet(patch, (1.0, 1.0, 1.0))
    image, annotation = volume((34, 38, 30), labels)
    read = reader(image, annotation)
    ours, maps = policy.take(read, start, Draws(angles, zoom))  # type: ignore[arg-type]
    box_image, box_labels = read(start, policy.box)
    theirs = SpatialTransform(patch, 0, False, border_mode_seg="constant", padding_value_seg=-1)
    affine = None
    if angles is not None or zoom is not None:
        affine = create_affine_matrix_3d(angles or (0, 0, 0), [zoom or 1.0] * 3)
        assert np.allclose(matrix_of(angles or (0, 0, 0), zoom or 1.0, 0), affine)
    compare(theirs, affine, box_image, torch.from_numpy(box_labels), ours, maps)


@pytest.mark.parametrize(("angle", "zoom"), [(2.9, None), (-1.2, 1.4), (0.3, 0.7), (None, 0.83)])
@pytest.mark.parametrize("coarsest", [0, 1, 2])
def test_equals_theirs_in_plane(angle: float | None, zoom: float | None, coarsest: int) -> None:
    order = [coarsest, *(axis for axis in range(3) if axis != coarsest)]
    patch, start = [24, 20, 22], [3, -4, 5]
    patch[coarsest], start[coarsest] = 5, -1
    policy = NNUNet(tuple(patch), THICK[coarsest])  # type: ignore[arg-type]
    assert policy.in_plane
    shape = [40, 36, 44]
    shape[coarsest] = 8
    image, annotation = volume(tuple(shape), 3)  # type: ignore[arg-type]
    read = reader(image, annotation)
    ours, maps = policy.take(read, tuple(start), Draws(None if angle is None else [angle], zoom))  # type: ignore[arg-type]
    box_image, box_labels = (np.asarray(a) for a in read(tuple(start), policy.box))  # type: ignore[arg-type]
    axes = [0, *(1 + axis for axis in order)]
    data = {
        "image": torch.from_numpy(box_image.transpose(axes).copy()),
        "segmentation": torch.from_numpy(box_labels.transpose(axes).copy()),
    }
    data = Convert3DTo2DTransform()(**data)
    size = tuple(patch[axis] for axis in order[1:])
    theirs = SpatialTransform(size, 0, False, border_mode_seg="constant", padding_value_seg=-1)
    affine = create_affine_matrix_2d(angle or 0.0, [zoom or 1.0] * 2)
    params = parameters(theirs, affine, data["image"])
    data = Convert2DTo3DTransform()(**theirs.apply(data, **params))
    np.testing.assert_allclose(ours.numpy().transpose(axes), data["image"].numpy(), atol=2e-4)
    same = maps.transpose(axes) == data["segmentation"].numpy()
    assert same.mean() > 0.999


def parameters(theirs: SpatialTransform, affine: Any, image: torch.Tensor) -> dict[str, Any]:
    """What their transform makes of a matrix that we chose."""
    import batchgeneratorsv2.transforms.spatial.spatial as module

    name = "create_affine_matrix_3d" if image.ndim == 4 else "create_affine_matrix_2d"
    original = getattr(module, name)
    theirs.p_rotation = 0.0 if affine is None else 1.1
    setattr(module, name, lambda *_: affine)
    try:
        return theirs.get_parameters(image=image)
    finally:
        setattr(module, name, original)


def compare(theirs: SpatialTransform, affine: Any, image: torch.Tensor, labels: torch.Tensor, *ours: Any) -> None:
    params = parameters(theirs, affine, image)
    data = theirs.apply({"image": image.clone(), "segmentation": labels.clone()}, **params)
    np.testing.assert_allclose(ours[0].numpy(), data["image"].numpy(), atol=2e-4)
    same = ours[1] == data["segmentation"].numpy()
    assert same.mean() > (0.999 if affine is not None else 1 - 1e-9)


def test_instances_go_with_their_labels() -> None:
    image, annotation = volume((30, 30, 30), 3)
    from scipy.ndimage import label

    numbers = np.where(annotation > 0, label(annotation > 0)[0], 0).astype(np.int32)
    policy = NNUNet((20, 20, 20), (1.0, 1.0, 1.0))
    _, maps = policy.take(reader(image, annotation, numbers), (-5, 0, 2), Draws((0.3, 0.2, -0.4), 1.2))  # type: ignore[arg-type]
    assert ((maps[0] > 0) == (maps[1] > 0)).all()
    assert set(map(tuple, maps.reshape(2, -1).T)) - {(OUTSIDE, 0)} <= set(
        zip(annotation.ravel(), numbers.ravel(), strict=True)
    )
    _, alone = policy.take(reader(image, annotation), (-5, 0, 2), Draws((0.3, 0.2, -0.4), 1.2))  # type: ignore[arg-type]
    assert (alone[0] == maps[0]).mean() > 0.999
