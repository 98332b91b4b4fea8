"""A network ready to segment volumes, whoever trained it: from an image in its own units to labels on its voxels.

Several networks of one recipe are an ensemble: their probabilities are averaged, window by window, so an ensemble needs
no more memory than its weights do.

Nothing is held for a whole volume but the image as it was given and what is asked for: the image is normalized and
resampled where the windows are, and their probabilities become labels on the image's own voxels, slab by slab.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmed_zoo.arguments import expect, expect_several
from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.data.crop import uncropped
from maskmed_zoo.data.fingerprint import Fingerprint, IntensityStats
from maskmed_zoo.data.image import Geometry, geometry_of, is_finite, is_small, times
from maskmed_zoo.data.preprocess import Cropped, Preprocessing, Region, crop_and_normalize
from maskmed_zoo.device import autocast, autocast_dtype, pick_device
from maskmed_zoo.errors import ArgumentError, first_line
from maskmed_zoo.inference.image_slab import ImageSlab
from maskmed_zoo.inference.probability_map import ProbabilityMap, ProbabilitySlabs
from maskmed_zoo.inference.sliding_window import Consumer, Image, Windows, visit
from maskmed_zoo.inference.stitcher import Instances, Stitcher, follow_labels
from maskmed_zoo.inference.to_image import LabelProbabilities, ToImage, into_array, into_labels, label_type, nearest
from maskmed_zoo.inference.write import Prediction
from maskmed_zoo.memory import check_available, within_memory
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.network_size import moved
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.settings import Spacing3

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image as the network sees it, (c z y x) float32, and where in the voxels of its file that lies."""

    image: Tensor
    region: Region


class Predictor:
    """A trained network with what belongs to it; `maskmed_zoo.load` makes one of a run, a study or exported weights.

    An image is an array (c z y x), or (z y x) for one channel, in the units of its files, with x from left to right, y
    from posterior to anterior and z from inferior to superior (RAS). Where its voxels lie is given by `geometry`, as
    `maskmed_zoo.data.formats.read_image` gives it, by `spacing` (z, y, x) in mm, or by `affine`, the 4x4 matrix from
    (x, y, z) indices to RAS+ mm: one of them.

    Args:
        recipe: whose channels and labels are known; it decides spacing, patch, normalization and windows.
        model: of this recipe, or several; moved to the device and put into evaluation mode.
        fingerprint: intensity statistics of the labelled cases, for 'ct' normalization; empty without any.
        device: cpu, cuda, cuda:1, …; default: CUDA if there is any, else the CPU.
        weights_sha256: what predicted files are known by; default: the checksum of the model's state.

    Raises `ArgumentError` for arguments of other kinds, and for several networks whose queries are to separate objects:
    those of one have nothing to do with those of another.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: SegmentationModel | Sequence[SegmentationModel],
        fingerprint: Fingerprint = (),
        *,
        device: str | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        expect(
            "recipe",
            recipe,
            (Recipe,),
            "a loaded recipe; zoo.load(FOLDER) makes a predictor of a run or of exported weights",
        )
        models = [model] if isinstance(model, SegmentationModel) else model
        expect_several("model", models, (SegmentationModel,), "a network, as zoo.create(RECIPE) gives it, or several")
        expect_several("fingerprint", fingerprint, (IntensityStats,), "intensity statistics, one per channel")
        self.recipe, self.fingerprint = recipe, fingerprint
        self.labels, self.channels = recipe.labels, recipe.channels
        self.device = pick_device(device)
        if len(models) != 1:
            _check_ensemble(models, recipe)
        self.models = [moved(one, self.device).eval() for one in models]
        self.dtype = autocast_dtype(recipe.train.amp, self.device)
        self._weights_sha256 = weights_sha256

    @cached_property
    def weights_sha256(self) -> str:
        """Checksum of the weights file, or of the model's state where it comes from no file."""
        return self._weights_sha256 or together([_checksum_of(model) for model in self.models])

    @property
    def model(self) -> SegmentationModel:
        """The network; raises `ArgumentError` for several, whose outputs of a window are not one."""
        if len(self.models) > 1:
            raise ArgumentError(
                f"{len(self.models)} networks together have no one output; give one of them, as a fold of the study"
            )
        return self.models[0]

    def segment(
        self,
        image: NDArray[Any],
        geometry: Geometry | None = None,
        *,
        spacing: Spacing3 | None = None,
        affine: NDArray[np.float64] | None = None,
        probabilities: bool = False,
        into: NDArray[np.floating] | None = None,
    ) -> Prediction:
        """Labels (z y x) of an image on its own voxels and, where the recipe separates instances, those too.

        Instances are those of the queries and follow the labels; a head that gives logits has connected parts of them.
        With `probabilities` those that the labels are made of come too, label by label: `Prediction.probabilities`,
        which needs their memory at the network's spacing. `into` takes them at the image's voxels slab by slab, an
        array (k z y x) of any floating type, such as a memory-mapped file.
        Raises `ArgumentError` for an array or a place of another form, `DataError` for another number of channels,
        and `MemoryShortageError` for an image that does not fit into memory.
        """
        image, geometry = self._image(image, geometry, spacing, affine)
        wanted = (self.models[0].num_classes, *image.shape[1:])
        if into is not None and (into.shape != wanted or into.dtype.kind != "f"):
            raise ArgumentError(
                f"into: expected a floating point array {wanted}, got {into.shape} of type {into.dtype}"
            )
        with within_memory(f"{geometry.source or 'image'}: to segment it"):
            return self._on_some_device(lambda *devices: self._segment(image, geometry, probabilities, into, *devices))

    def _segment(
        self,
        image: NDArray[Any],
        geometry: Geometry,
        is_kept: bool,
        into: NDArray[np.floating] | None,
        network: torch.device,
        sums: torch.device,
    ) -> Prediction:
        case, classes = self._cropped(image, geometry, 0), self.models[0].num_classes
        region = case.region
        windows = Windows(region.resampled, self.recipe.data.patch_size, self.recipe.inference.overlap)
        has_objects = _has_objects(self.models[0], self.recipe)
        _check_memory(geometry, windows, classes, is_kept=is_kept, has_objects=has_objects)
        labels = np.zeros(region.shape, label_type(classes))
        gives = [into_labels(labels[region.box], windows.axis)]
        if into is not None:
            _fill_outside(into, region)
            gives.append(into_array(into[(slice(None), *region.box)], windows.axis))

        def give(rows: slice, found: Tensor) -> None:
            for each in gives:
                each(rows, found)

        to_image = ToImage(region.resampled, region.cropped, region.thick_back, windows.axis, give)
        kept = ProbabilityMap(windows, classes) if is_kept else None

        def finished(slab: Tensor) -> None:
            if kept is not None:
                kept.keep(slab)
            to_image.take(slab)

        consumers: list[Consumer] = [ProbabilitySlabs(windows, classes, finished, sums)]
        stitcher = Stitcher(windows, threshold=self.recipe.inference.instance_threshold) if has_objects else None
        if stitcher is not None:
            consumers.append(stitcher)
        self._run(ImageSlab(case, windows.axis), windows, network, *consumers)
        made_of = None if kept is None else LabelProbabilities(kept.result(), region, self.labels.names)
        if self.recipe.data.instances is None:
            return Prediction(labels, None, geometry, made_of)
        found = Instances(np.zeros((1, 1, 1), np.int32), (), ()) if stitcher is None else stitcher.result()
        ids = uncropped(nearest(found.ids, region.cropped), region.box, region.shape)
        return Prediction(labels, follow_labels(replace(found, ids=ids), labels, geometry.spacing), geometry, made_of)

    def _on_some_device(self, segment: Callable[[torch.device, torch.device], Prediction]) -> Prediction:
        """What `segment` gives with the network and the sums of its windows on devices that have the memory for it."""
        cpu = torch.device("cpu")
        places = [(self.device, self.device), (self.device, cpu), (cpu, cpu)]
        remedies = ["windows are summed up on the CPU", "the network runs on the CPU, which takes longer"]
        for (network, sums), remedy in zip(places, remedies, strict=False):
            if network.type == "cpu":
                break
            try:
                return segment(network, sums)
            except torch.OutOfMemoryError as error:
                log.warning("%s: out of memory (%s); %s", network, first_line(error), remedy)
            torch.cuda.empty_cache()
        try:
            self.models = [moved(model, cpu) for model in self.models]
            return segment(cpu, cpu)
        finally:
            self.models = [moved(model, self.device) for model in self.models]

    def probabilities(
        self,
        image: NDArray[Any],
        geometry: Geometry | None = None,
        *,
        spacing: Spacing3 | None = None,
        affine: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float32]:
        """Probabilities (k z y x) of the labels on the image's own voxels, summing to 1 over k; needs their memory.

        Outside the non-zero region, which the network does not see, all is background. `segment(…, into=array)` writes
        them to a file instead.
        """
        image, geometry = self._image(image, geometry, spacing, affine)
        with within_memory(f"{geometry.source or 'image'}: its probabilities"):
            found = np.empty((self.models[0].num_classes, *image.shape[1:]), np.float32)
        self.segment(image, geometry, into=found)
        return found

    def files(
        self,
        inputs: str | Path | Sequence[str | Path],
        out: str | Path,
        *,
        overwrite: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Path]:
        """Segment image files or folders of them into `out`; see `maskmed_zoo.inference.predict_files`."""
        from maskmed_zoo.inference.predict_files import predict_files

        return predict_files(self, inputs, out, overwrite=overwrite, progress=progress)

    def prepare(self, image: NDArray[Any], geometry: Geometry) -> Prepared:
        """Image (c z y x) in its own units to what the network sees: its non-zero region, normalized, at its spacing.

        Raises `DataError` where it would have far more or far fewer voxels than before, or values that a normalization
        cannot take, `MemoryShortageError` for more than memory holds.
        """
        cropped = self._cropped(image, geometry, 2 * len(image) + self.models[0].num_classes)
        return Prepared(torch.from_numpy(cropped.image()), cropped.region)

    def _cropped(self, image: NDArray[Any], geometry: Geometry, values: int) -> Cropped:
        how = Preprocessing.of(self.recipe.data, self.channels, self.fingerprint)
        return crop_and_normalize(image, None, geometry, how, values=values)

    def network_probabilities(self, prepared: Tensor) -> Tensor:
        """Of a prepared image (c z y x): (k z y x) float32 on the CPU, at the network's spacing."""
        windows = Windows.of(prepared, self.recipe.data.patch_size, self.recipe.inference.overlap)
        probabilities = ProbabilityMap(windows, self.models[0].num_classes)
        self._run(prepared, windows, self.device, probabilities)
        return probabilities.result()

    def run(self, windows: Tensor) -> HeadOutput:
        """What the network says of normalized windows (b c d h w) on the device, in the recipe's precision."""
        return self._output(self.model, windows)

    def _output(self, model: SegmentationModel, windows: Tensor) -> HeadOutput:
        device = windows.device
        dtype = self.dtype if device.type == self.device.type else autocast_dtype(self.recipe.train.amp, device)
        with autocast(dtype, device):
            return model(windows.to(next((p.dtype for p in model.parameters()), windows.dtype)))

    def _together(self, windows: Tensor) -> HeadOutput:
        """What the network says, or, of several, the mean of their probabilities."""
        if len(self.models) == 1:
            return self._output(self.models[0], windows)
        total = self._output(self.models[0], windows).log_probabilities().exp()
        for model in self.models[1:]:
            total += self._output(model, windows).log_probabilities().exp()
        return HeadOutput([StageOutput(logits=total.div_(len(self.models)).log_())])

    def _run(self, image: Image, windows: Windows, device: torch.device, *consumers: Consumer) -> None:
        size = self.recipe.inference.batch_size
        for places, output in visit(self._together, image, windows, batch_size=size, device=device):
            for consumer in consumers:
                consumer.take(places, output)
            del output  # not beside that of the next windows

    def _image(
        self,
        image: NDArray[Any],
        geometry: Geometry | None,
        spacing: Spacing3 | None,
        affine: NDArray[np.float64] | None,
    ) -> tuple[NDArray[Any], Geometry]:
        """The image (c z y x) in a type that float32 holds, and its place."""
        try:
            array = np.asarray(image)
            array = array if is_small(array.dtype) else np.asarray(array, np.float32)
        except (TypeError, ValueError) as error:
            what = type(image).__name__
            raise ArgumentError(
                f"expected an array of numbers (c z y x), got {what}; for files there is files()"
            ) from error
        array = array[None] if array.ndim == 3 else array
        if array.ndim != 4 or not array.size:
            raise ArgumentError(f"expected an image (c z y x), or (z y x) for one channel, got shape {array.shape}")
        if not is_finite(array):
            raise ArgumentError("the image holds NaN or infinity; replace them by a finite value")
        if not isinstance(geometry, Geometry | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(
                f"geometry is {geometry!r}, expected that of a file; give a spacing as spacing=(z, y, x)"
            )
        if sum(given is not None for given in (geometry, spacing, affine)) != 1:
            raise ArgumentError("where do the voxels lie? give one of spacing=(z, y, x) in mm, affine= and geometry=")
        geometry = geometry or geometry_of(array, spacing=spacing, affine=affine)
        if array.shape[1:] != geometry.canonical_shape:
            raise ArgumentError(f"image of {array.shape[1:]} voxels (z, y, x), its geometry {geometry.canonical_shape}")
        return array, geometry


def together(checksums: Sequence[str]) -> str:
    """What several weights are known by, in whatever order; those of one network by their own checksum."""
    return checksums[0] if len(checksums) == 1 else sha256("\n".join(sorted(checksums)).encode()).hexdigest()


def _checksum_of(model: SegmentationModel) -> str:
    digest = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_ensemble(models: Sequence[SegmentationModel], recipe: Recipe) -> None:
    """Raise `ArgumentError` for no network, and for several whose probabilities are not all that they say."""
    if not models:
        raise ArgumentError("model: expected a network, or several, got none")
    if _has_objects(models[0], recipe):
        raise ArgumentError(
            f"data.instances: the objects of {len(models)} networks cannot be averaged, as their queries have nothing "
            f"to do with one another; predict with one of them, such as a fold of the study"
        )


def _has_objects(model: SegmentationModel, recipe: Recipe) -> bool:
    """Whether queries say which objects there are; those of other heads are connected parts of the labels."""
    return recipe.data.instances is not None and model.head.gives == "queries"


def _check_memory(geometry: Geometry, windows: Windows, classes: int, *, is_kept: bool, has_objects: bool) -> None:
    """Raise `MemoryShortageError` where what is held beside an image would not fit."""
    voxels = math.prod(windows.shape)
    in_slab = voxels * min(1.0, 1.5 * windows.window[windows.axis] / windows.shape[windows.axis])
    labels = math.prod(geometry.canonical_shape) * np.dtype(label_type(classes)).itemsize
    needed = 4 * classes * (in_slab + voxels * is_kept) + 8 * voxels * has_objects + labels
    check_available(
        int(needed),
        f"{geometry.source or 'image'}: {times(windows.shape)} voxels at the recipe's spacing, of {classes} labels, which",
    )


def _fill_outside(probabilities: NDArray[np.floating], region: Region) -> None:
    """Make all background, if not all of a file's voxels were seen."""
    if region.cropped != region.shape:
        for index, one in enumerate(probabilities):
            one[...] = index == 0
