"""A network that nnU-Net v2 trained, used as nnU-Net uses it, behind the same door as every predictor.

What differs from `inference.predictor`: the voxels stay in the file's own order, logits and not probabilities are
averaged over windows, mirrored copies and folds, and logits are resampled to the image's grid, where the largest wins.
Source: nnU-Net v2 `predict_from_raw_data.py` and `export_prediction.py` (Isensee et al., Nat Methods 18, 203, 2021).
Deviation: labels are resampled one after the other, so no label's logits are held at full size beside another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmed_zoo.data.crop import Box, uncropped
from maskmed_zoo.data.fingerprint import Fingerprint
from maskmed_zoo.data.image import Geometry
from maskmed_zoo.data.nnunet_order import VoxelOrder
from maskmed_zoo.data.preprocess import Region
from maskmed_zoo.errors import ArgumentError
from maskmed_zoo.inference.nnunet_windows import window_logits
from maskmed_zoo.inference.predictor import Predictor, Prepared
from maskmed_zoo.inference.to_image import resized
from maskmed_zoo.inference.write import Prediction
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.recipe import Recipe


@dataclass(frozen=True)
class NNUNetWay:
    """What a trained model of nnU-Net says of its use, besides its recipe.

    `transpose` is the plan's `transpose_forward`, `turns` whether its reader turns images to RAS; `mirror_axes`, of the
    axes as the network sees them, those along which nnU-Net mirrors.
    """

    transpose: tuple[int, int, int] = (0, 1, 2)
    turns: bool = False
    mirror_axes: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class LogitProbabilities:
    """Probabilities of a segmented image, given label by label: name and (z y x) float32 on the image's own voxels.

    What is kept are logits (k d h w) at the network's spacing, in nnU-Net's `order`.
    """

    logits: Tensor
    region: Region
    order: VoxelOrder
    names: Sequence[str]

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        norm = label_logits(self.logits, 0, self.region)
        for index in range(1, len(self.logits)):
            torch.logaddexp(norm, label_logits(self.logits, index, self.region), out=norm)
        for index, name in enumerate(self.names):
            inside = label_logits(self.logits, index, self.region).sub_(norm).exp_().numpy()
            yield name, self.order.back(uncropped(inside, self.region.box, self.region.shape, float(index == 0)))


class NNUNetPredictor(Predictor):
    """As `Predictor`, for networks that nnU-Net trained; `maskmed_zoo.load` makes one of nnU-Net's results folder.

    An array with `spacing` or `affine` is taken for a file in RAS. Axes of `recipe`, and of what `prepare` gives, are
    those of the network, in nnU-Net's order.

    Args:
        recipe: of the plan, with its normalization; `inference.mirror` says whether mirrored copies are averaged.
        model: one network, or one for each fold.
        fingerprint: the plan's intensity statistics, for 'ct' normalization.
        way: order of axes and mirroring.
        device: cpu, cuda, cuda:1, …; default: CUDA if there is any, else the CPU.
        weights_sha256: what predicted files are known by; default: the checksum of the networks' state.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: SegmentationModel | Sequence[SegmentationModel],
        fingerprint: Fingerprint = (),
        *,
        way: NNUNetWay,
        device: str | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        super().__init__(recipe, model, fingerprint, device=device, weights_sha256=weights_sha256)
        self.way, self.mirror_axes = way, way.mirror_axes if recipe.inference.mirror else ()
        self.dtype = torch.float16 if self.device.type == "cuda" else None

    def _segment(
        self,
        image: NDArray[Any],
        geometry: Geometry,
        network: torch.device,
        sums: torch.device,
        *,
        keep: bool,
        into: NDArray[np.floating] | None,
        slabs: Callable[[Box, Tensor], None] | None = None,
    ) -> Prediction:
        if slabs is not None:
            raise ArgumentError("slabs: nnU-Net's logits are resampled label by label; take into=, an array")
        del sums  # on the CPU, as in nnU-Net where the device has no room for them
        ready = self.prepare(image, geometry)
        logits, region = self.network_logits(ready.image, network), ready.region
        order, inside = self.order_of(geometry), logits_to_labels(logits, region)
        made_of = LogitProbabilities(logits, region, order, self.labels.names)
        if into is not None:
            for index, (_, found) in enumerate(made_of):
                into[index] = found
        labels = order.back(uncropped(inside, region.box, region.shape))
        return Prediction(labels, None, geometry, made_of if keep else None)

    def prepare(self, image: NDArray[np.float32], geometry: Geometry) -> Prepared:
        """Image (c z y x) in its own units to what the network sees, in nnU-Net's order; see `Predictor.prepare`."""
        order = self.order_of(geometry)
        return super().prepare(order.turned(image), order.geometry(geometry))

    def network_logits(self, prepared: Tensor, device: torch.device | None = None) -> Tensor:
        """Of a prepared image (c d h w): logits (k d h w) float16 on the CPU, at the network's spacing.

        `device`: where the networks are to do it, if not where they belong.
        """
        device = device or self.device
        self._place(device)
        return window_logits(
            [partial(self._final_logits, model) for model in self.models],
            prepared,
            self.recipe.data.patch_size,
            self.models[0].num_classes,
            mirror_axes=self.mirror_axes,
            device=device,
        )

    def network_probabilities(self, prepared: Tensor) -> Tensor:
        """The softmax of `network_logits`, float32."""
        return self.network_logits(prepared).float().softmax(0)

    def order_of(self, geometry: Geometry) -> VoxelOrder:
        """How voxels of such a grid are turned for the network."""
        return VoxelOrder.of(geometry, self.way.transpose, turns=self.way.turns)

    def _final_logits(self, model: SegmentationModel, windows: Tensor) -> Tensor:
        return self._output(model, windows).stages[0].spatial


def label_logits(logits: Tensor, label: int, region: Region) -> Tensor:
    """One label's logits (d h w) of (k d h w), resampled to the region of the file and rounded to float16, float32."""
    found = resized(logits[label : label + 1].float(), region.cropped, region.thick_back)[0]
    return torch.from_numpy(found).half().float()


def logits_to_labels(logits: Tensor, region: Region) -> NDArray[np.uint8 | np.uint16]:
    """The label of the largest logit (k d h w) at each voxel (d h w) of the region, of equal ones the first."""
    best = label_logits(logits, 0, region)
    labels = np.zeros(region.cropped, np.uint8 if len(logits) <= 256 else np.uint16)
    for label in range(1, len(logits)):
        seen = label_logits(logits, label, region)
        labels[(seen > best).numpy()] = label
        torch.maximum(best, seen, out=best)
    return labels
