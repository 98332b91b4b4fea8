"""A network ready to segment volumes, whoever trained it: from an image in its own units to labels on its voxels.

Several networks of one recipe are an ensemble: their probabilities are averaged, window by window, so an ensemble needs
no more memory than its weights do.

Nothing is held for a whole volume but the image as it was given and what is asked for: the image is normalized and
resampled where the windows are, and their probabilities become labels on the image's own voxels, slab by slab.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmed_zoo.arguments import expect, expect_several
from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.data.crop import Box, uncropped
from maskmed_zoo.data.fingerprint import Fingerprint, IntensityStats
from maskmed_zoo.data.image import Geometry
from maskmed_zoo.data.preprocess import Cropped, Preprocessing, Region, crop_and_normalize
from maskmed_zoo.device import autocast, autocast_dtype, pick_device
from maskmed_zoo.errors import ArgumentError
from maskmed_zoo.inference.devices import with_memory
from maskmed_zoo.inference.given import check_into, given_image
from maskmed_zoo.inference.image_slab import ImageSlab
from maskmed_zoo.inference.mirroring import mirrored
from maskmed_zoo.inference.postprocessing import Postprocessing
from maskmed_zoo.inference.probability_map import ProbabilityMap
from maskmed_zoo.inference.segmented import Segmented
from maskmed_zoo.inference.sliding_window import Consumer, Image, Windows, visit
from maskmed_zoo.inference.stitcher import Instances, Stitcher, bytes_needed, follow_labels
from maskmed_zoo.inference.to_image import LabelProbabilities, nearest
from maskmed_zoo.inference.write import Prediction
from maskmed_zoo.memory import within_memory
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.network_size import moved, reported
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.settings import Spacing3


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
        weights_sha256: checksum of the weights, or several of those of each model, which predicted files are known by;
            default: of the models' state.
        postprocessing: what is done with every label map, see `maskmed_zoo.inference.postprocessing`.

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
        weights_sha256: str | Sequence[str] | None = None,
        postprocessing: Postprocessing | None = None,
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
        self.mirror_axes = recipe.data.mirror_axes if recipe.inference.mirror else ()
        self._weights_sha256 = [weights_sha256] if isinstance(weights_sha256, str) else weights_sha256
        self.postprocessing = postprocessing

    @cached_property
    def checksums(self) -> Sequence[str]:
        """Of the weights files, or of the state of the models where they come from no file."""
        return self._weights_sha256 or [_checksum_of(model) for model in self.models]

    @property
    def weights_sha256(self) -> str:
        """What predicted files are known by: the checksum of the weights, of several of all of them together."""
        return together(self.checksums)

    @property
    def settings(self) -> dict[str, Any]:
        """What labels depend on besides the image and the weights, JSON-able; what is off is left out."""
        found = settings_of(self.recipe, self.mirror_axes)
        if self.postprocessing is not None and self.postprocessing.steps:
            found["postprocessing"] = self.postprocessing.settings
        return found

    @property
    def model(self) -> SegmentationModel:
        """The network, on the device; raises `ArgumentError` for several, whose outputs of a window are not one."""
        if len(self.models) > 1:
            raise ArgumentError(
                f"{len(self.models)} networks together have no one output; give one of them, as a fold of the study"
            )
        with reported():
            self._place(self.device)
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
        slabs: Callable[[Box, Tensor], None] | None = None,
    ) -> Prediction:
        """Labels (z y x) of an image on its own voxels and, where the recipe separates instances, those too.

        Instances are those of the queries and follow the labels; a head that gives logits has connected parts of them.
        With `probabilities` those that the labels are made of come too, label by label: `Prediction.probabilities`,
        which needs their memory at the network's spacing. `into` takes them at the image's voxels slab by slab, an
        array (k z y x) of any floating type, such as a memory-mapped file. `slabs` is called with each slab, its place
        (z y x) in the image and its probabilities (k z y x), all background elsewhere; with all of them once more where
        a device's memory ran out.
        Raises `ArgumentError` for an array or a place of another form, `DataError` for another number of channels,
        and `MemoryShortageError` for an image that does not fit into memory.
        """
        image, geometry = given_image(image, geometry, spacing, affine)
        check_into(into, (self.models[0].num_classes, *image.shape[1:]))

        def segmented(network: torch.device, sums: torch.device) -> Prediction:
            return self._segment(image, geometry, network, sums, keep=probabilities, into=into, slabs=slabs)

        with within_memory(f"{geometry.source or 'image'}: to segment it"):
            return with_memory(self.device, segmented)

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
        case = self._cropped(image, geometry, 0)
        region, inference = case.region, self.recipe.inference
        windows = Windows(region.resampled, self.recipe.data.patch_size, inference.overlap)
        where, num_classes = geometry.source or "image", self.models[0].num_classes
        separates, has_queries = self.recipe.data.instances is not None, _has_objects(self.models[0], self.recipe)
        after = self.postprocessing or Postprocessing((), self.labels)
        found = Segmented(
            windows,
            region,
            num_classes,
            device=sums,
            into=into,
            slabs=slabs,
            keep=keep,
            weights=after.weights,
            beside=bytes_needed(windows, region.shape, has_queries=has_queries) if separates else 0,
            where=where,
        )
        stitcher = Stitcher(windows, threshold=inference.instance_threshold) if has_queries else None
        self._run(ImageSlab(case, windows.axis), windows, network, found, *([stitcher] if stitcher else []))
        made_of = None if found.seen is None else LabelProbabilities(found.seen, region, self.labels.names)
        labels, objects = after.apply(found.labels, geometry.spacing), None
        if separates:
            seen = Instances(np.zeros((1, 1, 1), np.int32), (), ()) if stitcher is None else stitcher.result()
            del stitcher  # its maps are as large as what it gave
            ids = uncropped(nearest(seen.ids, region.cropped), region.box, region.shape)
            objects = follow_labels(replace(seen, ids=ids), labels, geometry.spacing)
        return Prediction(labels, objects, geometry, made_of)

    def _place(self, device: torch.device) -> None:
        """Have the networks on a device, where they stay until they are needed on another."""
        with torch.inference_mode(False):  # whose tensors could not be trained any more
            for model in self.models:
                model.to(device)

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
        image, geometry = given_image(image, geometry, spacing, affine)
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
        probabilities: bool = False,
        npz: bool = False,
        part: tuple[int, int] = (1, 1),
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Path]:
        """Segment image files or folders of them; returns the label maps written, `out/NAME.nii.gz` each.

        `out` may name the one label map to write if there is one input file. Where the recipe separates instances,
        `NAME_instances.nii.gz` and `NAME_instances.json` lie beside it; with `probabilities` and `npz` the files of
        `inference.write_probabilities`. Cases finished by the same weights and settings are skipped unless `overwrite`,
        which also replaces what others made. `part` (i, n) takes the i-th of n disjoint shares of the cases, counted
        from 1. `progress(done, total)` counts all cases of the part. While a case is computed the next one is read and
        the last one written, see `inference.pipeline`.

        Raises one `DataError` for all inputs that cannot be used, after the others are finished; and, before anything
        is predicted, where an output would be an input, or label maps are in the way that other weights or settings
        made, or something unknown, which is never replaced. Raises `OutputError` where nothing can be written; what is
        finished stays.
        """
        from maskmed_zoo.inference.predict_files import Predicting

        cases = Predicting(self, inputs, out, overwrite=overwrite, probabilities=probabilities, npz=npz, part=part)
        work = cases.run(progress)
        work.failures.tell(len(cases.jobs), cases.others)
        return work.written

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
        """What the network says, or, of several and of mirrored copies, the mean of their probabilities."""
        says = [mirrored(partial(self._output, model), self.mirror_axes) for model in self.models]
        if len(says) == 1:
            return says[0](windows)
        total = says[0](windows).log_probabilities().exp()
        for one in says[1:]:
            total += one(windows).log_probabilities().exp()
        return HeadOutput([StageOutput(logits=total.div_(len(says)).log_())])

    def _run(self, image: Image, windows: Windows, device: torch.device, *consumers: Consumer) -> None:
        self._place(device)
        size = self.recipe.inference.batch_size
        for places, output in visit(self._together, image, windows, batch_size=size, device=device):
            for consumer in consumers:
                consumer.take(places, output)
            del output  # not beside that of the next windows


def settings_of(recipe: Recipe, mirror_axes: Sequence[str | int]) -> dict[str, Any]:
    """What label maps as predicted depend on besides the image and the weights; what is off is left out."""
    found: dict[str, Any] = {"overlap": recipe.inference.overlap}
    if mirror_axes:
        found["mirror"] = [*mirror_axes]
    if recipe.data.instances is not None:
        found["instance_threshold"] = recipe.inference.instance_threshold
    return found


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
    if any(_has_objects(model, recipe) for model in models):
        raise ArgumentError(
            f"data.instances: the objects of {len(models)} networks cannot be averaged, as their queries have nothing "
            f"to do with one another; predict with one of them, such as a fold of the study"
        )


def _has_objects(model: SegmentationModel, recipe: Recipe) -> bool:
    """Whether queries say which objects there are; those of other heads are connected parts of the labels."""
    return recipe.data.instances is not None and model.head.gives == "queries"
