"""Segment NIfTI images with the network and the pipeline.json that lie beside this file.

    pip install numpy scipy nibabel onnxruntime
    python predict_onnx.py IMAGES OUT

IMAGES are files, .nii or .nii.gz, or folders of them: NAME_0000, NAME_0001, … for the channels of a case, or plain
names if there is one channel. OUT is a folder, where NAME.nii.gz are written on the voxels of their images, or one
.nii.gz for one case. Label maps that are there already stay and are skipped. In Python:
`Runner(folder).segment(array, spacing)`. Channels and labels are listed in pipeline.json.

This file needs nothing but the four packages above: neither PyTorch nor maskmed-zoo, which wrote it. Every step is
described in pipeline.json's schema. Research software, no medical device.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

try:
    import nibabel as nib
    import numpy as np
    import onnxruntime
    from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
    from scipy import ndimage
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.stderr.write(f"{missing}; pip install numpy scipy nibabel onnxruntime\n")
    sys.exit(2)

Array = np.ndarray[Any, np.dtype[Any]]
HERE = Path(__file__).resolve().parent
TOGETHER = "put network.onnx, pipeline.json and predict_onnx.py of one export side by side"
CARRIED = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "xyzt_units"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
SAME_GRID = 0.01
"""Share of the smallest voxel edge by which the affines of a case's channels may differ."""


class MistakeError(Exception):
    """Input that cannot be used; one line."""


class Runner:
    """An exported pipeline: `folder` holds pipeline.json and the network; `threads` 0: as many as there are cores."""

    def __init__(self, folder: str | Path = HERE, *, threads: int = 0) -> None:
        file = Path(folder) / "pipeline.json"
        try:
            self.steps: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
            self.channels, self.windows = self.steps["channels"], self.steps["windows"]
            path = str(file.with_name(self.steps["network"]["file"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise MistakeError(f"{file}: cannot be read ({error}); {TOGETHER}") from error
        if self.steps.get("format") != 2:
            raise MistakeError(f"{file}: of another version than this program; {TOGETHER}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own kinds
            raise MistakeError(f"{path}: cannot be used ({line_of(error)}); {TOGETHER}") from error

    def segment(self, image: Array, spacing: Sequence[float]) -> Array:
        """Labels (z y x) of an image (c z y x) in the units of its files, lying as in RAS; spacing (z, y, x) in mm."""
        if image.ndim != 4 or len(image) != len(self.channels) or 0 in image.shape:
            raise MistakeError(f"image of shape {image.shape}: expected (c z y x), c of {', '.join(self.channels)}")
        if not np.isfinite(image).all():
            raise MistakeError("the image holds NaN or infinity; replace them by a finite value")
        if len(spacing) != 3 or not all(0 < size < np.inf for size in spacing):
            raise MistakeError(f"spacing {list(spacing)}: expected three positive numbers (z, y, x), in mm")
        box, inside = nonzero(image)
        cropped, steps = image[(slice(None), *box)], self.steps["normalization"]
        if any(how["in_mask"] for how in steps):
            inside = np.asarray(ndimage.binary_fill_holes(inside))
        to = self.steps["resampling"]
        shape = [max(1, round(a / b * n)) for n, a, b in zip(cropped.shape[1:], spacing, to["spacing"], strict=True)]
        thick = thick_axis(spacing, to["spacing"], to["anisotropic"])
        prepared = np.empty((len(image), *shape), np.float32)
        for made, channel, how in zip(prepared, cropped, steps, strict=True):
            made[...] = resample_image(normalized(channel, how, inside), shape, thick)
        result = np.zeros(image.shape[1:], np.uint8 if len(self.steps["labels"]) <= 256 else np.uint16)
        back = thick_axis(to["spacing"], spacing, to["anisotropic"])
        weights = self.thresholds()
        for row, found in enumerate(to_image(self.slices(prepared), shape, cropped.shape[1:], back)):
            result[box][row] = (found * weights).argmax(0)
        for step in sorted(self.steps["postprocessing"], key=lambda step: step["do"] != "fill_holes"):
            postprocess(result, self.steps["labels"][step["label"]], step, float(np.prod(spacing)))
        return result

    def thresholds(self) -> Array:
        """What the labels' probabilities are multiplied by, (k 1 1)."""
        weights = np.ones((len(self.steps["labels"]), 1, 1), np.float32)
        for step in (step for step in self.steps["postprocessing"] if step["do"] == "threshold"):
            weights[self.steps["labels"][step["label"]]] = (1 - step["at"]) / step["at"]
        return weights

    def slices(self, prepared: Array) -> Iterator[Array]:
        """Probabilities (k y x) of an image (c z y x) as the network sees it, slice by slice along z.

        Sums of windows are held over the length of one window, and given away when no further window touches them.
        """
        window, size = self.windows["patch_size"], prepared.shape[1:]
        missing = [max(0, w - n) for w, n in zip(window, size, strict=True)]
        padded = np.pad(prepared, [(0, 0), *((m // 2, m - m // 2) for m in missing)]) if any(missing) else prepared
        inner = [slice(m // 2, m // 2 + n) for m, n in zip(missing, size, strict=True)]
        weights = importance(window, self.windows["sigma"], self.windows["lowest_weight"])
        starts = [starts_along(n, w, self.windows["overlap"]) for n, w in zip(padded.shape[1:], window, strict=True)]
        places = [tuple(slice(a, a + w) for a, w in zip(at, window[1:], strict=True)) for at in product(*starts[1:])]
        total = np.zeros((len(self.steps["labels"]), window[0], *padded.shape[2:]), np.float32)
        step = self.windows["batch_size"]
        for z, following in zip(starts[0], [*starts[0][1:], padded.shape[1]], strict=True):
            for first in range(0, len(places), step):
                batch = places[first : first + step]
                found = self.run(np.stack([padded[(slice(None), slice(z, z + window[0]), *place)] for place in batch]))
                for place, part in zip(batch, found, strict=True):
                    total[(slice(None), slice(None), *place)] += part * weights
            for index in range(max(z, inner[0].start), min(following, inner[0].stop)):
                part = total[(slice(None), index - z, *inner[1:])]
                norm = part.sum(0)
                if not np.isfinite(norm).all() or not (norm > 0).all():
                    raise MistakeError("the network's probabilities hold NaN or infinity")
                yield part / norm
            for index in range(window[0]):  # one by one, which copies no more than a slice
                later = index + following - z
                total[:, index] = total[:, later] if later < window[0] else 0

    def run(self, windows: Array) -> Array:
        """Probabilities (b k d h w) of windows (b c d h w), the mean over the flips that the pipeline asks for."""
        axes = ["zyx".index(axis) + 2 for axis in self.windows["mirrored"]]
        flips = list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))
        total: Any = 0.0
        for flip in flips:
            image = np.ascontiguousarray(np.flip(windows, flip), np.float32)
            log: Any = self.session.run(None, {self.steps["network"]["input"]: image})[0]
            total = total + np.flip(np.exp(log), flip)
        return total / len(flips) if len(flips) > 1 else total

    def write(self, images: Sequence[Path], target: Path) -> None:
        """Segment the channel files of one case into `target`, which appears whole or not at all."""
        array, spacing, orientation, header = read(images)
        labels = self.segment(array, spacing).transpose(2, 1, 0)
        turn = ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), orientation)
        stored = np.asfortranarray(apply_orientation(labels, turn))
        result = nib.Nifti1Header()
        result.set_data_dtype(stored.dtype)
        result.set_data_shape(stored.shape)
        for name in CARRIED:
            result[name] = header[name]
        content = nib.Nifti1Image(stored, None, result).to_bytes()
        unfinished = target.with_name(f".unfinished-{os.getpid()}-{target.name}")
        try:
            unfinished.write_bytes(gzip.compress(content, compresslevel=6, mtime=0))
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)


def nonzero(image: Array) -> tuple[tuple[slice, ...], Array]:
    """The box of what is not 0 in any channel of (c z y x), and that within it."""
    mask = (image != 0).any(0)
    found = ndimage.find_objects(mask.astype(np.uint8), 1)[:1] if mask.any() else []
    box = tuple(found[0]) if found else tuple(slice(0, n) for n in mask.shape)
    return box, mask[box]


def normalized(channel: Array, how: dict[str, Any], inside: Array) -> Array:
    """A channel (z y x), clipped, shifted and divided."""
    values = channel.astype(np.float32)
    shift, divisor = how["shift"], how["divisor"]
    if how["scheme"] == "zscore":
        counted = values[inside] if how["in_mask"] else values
        shift, divisor = (counted.mean(dtype=np.float64), counted.std(dtype=np.float64)) if counted.size else (0, 0)
    elif how["scheme"] == "rescale_to_0_1":
        shift, divisor = float(values.min()), float(values.max()) - float(values.min())
    elif how["scheme"] == "rgb_to_0_1" and not (values.min() >= 0 and values.max() <= 255):
        raise MistakeError(f"values {values.min():g} … {values.max():g}, expected 0 … 255")
    if how["low"] is not None:
        np.clip(values, how["low"], how["high"], out=values)
    where: Any = inside if how["in_mask"] else True
    np.subtract(values, np.float32(shift), out=values, where=where)
    return np.divide(values, np.float32(max(divisor, 1e-8)), out=values, where=where)


def thick_axis(spacing_from: Sequence[float], spacing_to: Sequence[float], ratio: float) -> int | None:
    """The axis that is not interpolated."""
    for spacing in (spacing_from, spacing_to):
        if max(spacing) / min(spacing) > ratio:
            coarsest = [axis for axis, size in enumerate(spacing) if size == max(spacing)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def positions(size: int, wanted: int) -> Array:
    """Where `wanted` voxels over the field of view of `size` lie among these."""
    return size / wanted * (np.arange(wanted) + 0.5) - 0.5


def nearest(size: int, wanted: int) -> Array:
    """For each of `wanted` voxels the nearest of `size`, the later of two."""
    return np.clip(np.floor(positions(size, wanted) + 0.5), 0, size - 1).astype(int)


def resample_image(image: Array, shape: Sequence[int], thick: int | None) -> Array:
    """(z y x) on a grid of `shape` voxels: a cubic spline within the range of values, the nearest slice if thick."""
    if image.shape == tuple(shape):
        return image
    if thick is None:
        return _spline(image, shape)
    chosen = np.moveaxis(image, thick, 0)[nearest(image.shape[thick], shape[thick])]
    size = [n for axis, n in enumerate(shape) if axis != thick]
    return np.moveaxis(np.stack([_spline(one, size) for one in chosen]), 0, thick)


def _spline(image: Array, shape: Sequence[int]) -> Array:
    factors = [wanted / n for n, wanted in zip(image.shape, shape, strict=True)]
    made: Any = ndimage.zoom(image, factors, order=3, mode="nearest", grid_mode=True)
    return np.clip(made, image.min(), image.max())


def starts_along(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis."""
    span = size - window
    if span <= 0:
        return [0]
    count = -(-span // max(1, int(window * (1 - overlap) + 1e-6))) + 1
    return [round(index * span / (count - 1)) for index in range(count)]


def importance(window: Sequence[int], sigma: float, lowest: float) -> Array:
    """(d h w) weights of a window's voxels."""
    weights = np.ones((1, 1, 1), np.float32)
    for axis, size in enumerate(window):
        offset = np.arange(size, dtype=np.float32) - (size - 1) / 2
        shape = [-1 if a == axis else 1 for a in range(3)]
        weights = weights * np.exp(-0.5 * (offset / (sigma * size)) ** 2).reshape(shape)
    return np.maximum(weights / weights.max(), lowest).astype(np.float32)


def to_image(slices: Iterable[Array], size: Sequence[int], shape: Sequence[int], thick: int | None) -> Iterator[Array]:
    """Slices (k y x) along z of a grid of `size` voxels on one of `shape` voxels, interpolated linearly."""
    (low, high, share), *planes = (_linear(size[axis], shape[axis], axis == thick) for axis in range(3))
    before: Any = None
    for index, found in enumerate(slices):
        for row in np.flatnonzero(high == index):
            made = found if low[row] == index else before + share[row] * (found - before)
            for axis in (1, 2):
                if thick == axis or shape[axis] != size[axis]:
                    made = _between(made, axis, *planes[axis - 1])
            yield made
        before = found


def postprocess(labels: Array, value: int, step: dict[str, Any], voxel_mm3: float) -> None:
    """Fill the holes of one label (z y x), or make background of parts of it, in place; thresholds are behind it."""
    found: Any = [] if step["do"] == "threshold" else ndimage.find_objects((labels == value).astype(np.uint8))
    if not found:
        return
    box = found[0]
    inside = labels[box]
    fills = step["do"] == "fill_holes"
    found = ndimage.label(inside != value) if fills else ndimage.label(inside == value, np.ones((3, 3, 3)))
    numbers, count = found
    if fills:
        is_hole = np.arange(count + 1) > 0
        sides = (numbers.take([0, -1], axis) for axis in range(3))
        for seen in (*sides, numbers[inside != 0]):
            is_hole[seen] = False
        inside[is_hole[numbers]] = value
        return
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    is_kept = np.arange(count) == sizes.argmax()
    if step["do"] == "remove_small":
        is_kept = sizes * voxel_mm3 >= step["below_mm3"] * (1 - 1e-6)
    inside[np.concatenate([[False], ~is_kept])[numbers]] = 0


def _linear(size: int, wanted: int, is_thick: bool) -> tuple[Array, Array, Array]:
    """For each of `wanted` voxels its two neighbours among `size`, and the share of the second."""
    if is_thick:
        index = nearest(size, wanted)
        return index, index, np.zeros(wanted, np.float32)
    place = np.clip(positions(size, wanted), 0, size - 1)
    low = np.floor(place).astype(int)
    return low, np.minimum(low + 1, size - 1), (place - low).astype(np.float32)


def _between(values: Array, axis: int, low: Array, high: Array, share: Array) -> Array:
    below, weight = values.take(low, axis), share.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    return below + weight * (values.take(high, axis) - below)


def read(paths: Sequence[Path]) -> tuple[Array, list[float], Array, Any]:
    """Channels (c z y x) of one case, spacing (z, y, x) in mm, and the first file's orientation and header."""
    images: list[Any] = [nib.load(path) for path in paths]  # pyright: ignore[reportPrivateImportUsage]
    affine, shape = images[0].affine, images[0].shape
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or 0 in shape:
        raise MistakeError(f"{paths[0]}: shape {shape}, expected a 3-D image; save one file per volume or channel")
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 0:
        raise MistakeError(f"{paths[0]}: the affine is singular or not finite; correct the header")
    orientation = io_orientation(affine)
    arrays: list[Array] = []
    for path, image in zip(paths, images, strict=True):
        if image.shape[:3] != shape[:3] or np.abs(image.affine - affine).max() * max(shape) > SAME_GRID * edges.min():
            raise MistakeError(f"{path}: other voxels than {paths[0]}; resample one onto the other's grid")
        if image.get_data_dtype().kind not in "biuf":
            raise MistakeError(f"{path}: voxels of type {image.get_data_dtype()}, expected plain numbers")
        stored = np.asanyarray(image.dataobj).reshape(shape[:3]).astype(np.float32)
        if not np.isfinite(stored).all():
            raise MistakeError(f"{path}: holds NaN or infinity; replace them by a finite value")
        arrays.append(apply_orientation(stored, orientation).transpose(2, 1, 0))
    sizes = edges * UNIT_MM.get(int(images[0].header["xyzt_units"]) & 7, 1.0)
    stored_axes = np.argsort(orientation[:, 0])
    return np.stack(arrays), [float(sizes[axis]) for axis in stored_axes[::-1]], orientation, images[0].header


def cases(inputs: Sequence[Path], channels: Sequence[str]) -> Iterator[tuple[str, list[Path]]]:
    """Names and channel files, in order, of the cases in files and folders."""
    files: list[Path] = []
    for path in inputs:
        found = [p for p in sorted(path.iterdir()) if not p.name.startswith(".")] if path.is_dir() else [path]
        images = [p for p in found if p.name.endswith((".nii", ".nii.gz"))]
        if not path.exists() or not images:
            what = "no .nii or .nii.gz file" if path.exists() else "no such file or folder"
            raise MistakeError(f"{path}: {what}; give NIfTI images or folders of them")
        files += images
    stems = {path: path.name.removesuffix(".gz").removesuffix(".nii") for path in files}
    is_plain = len(channels) == 1 and not any(stem.endswith("_0000") for stem in stems.values())
    known: dict[str, dict[int, Path]] = {}
    for path, stem in stems.items():
        match = None if is_plain else re.fullmatch(r"(.+)_(\d{4})", stem)
        if match is None and not is_plain:
            raise MistakeError(f"{path}: no channel number; rename it to {stem}_0000")
        name, channel = (match[1], int(match[2])) if match else (stem, 0)
        if channel in known.setdefault(name, {}):
            raise MistakeError(f"{path}: '{name}' is there twice, also as {known[name][channel]}")
        known[name][channel] = path
    for name, found in known.items():
        if sorted(found) != list(range(len(channels))):
            names = ", ".join(found[channel].name for channel in sorted(found))
            expected = f"{len(channels)} ({', '.join(channels)}), numbered from _0000"
            raise MistakeError(f"case '{name}' has {len(found)} channel files ({names}), expected {expected}")
        yield name, [found[channel] for channel in range(len(channels))]


def line_of(error: Exception) -> str:
    """What went wrong, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def main(words: Sequence[str] | None = None) -> int:
    """Segment what the command line names; 2 where something could not be used, which is told in a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", metavar="IMAGES", type=Path, nargs="+", help="files, or folders of them")
    parser.add_argument("out", metavar="OUT", type=Path, help="a folder, or one .nii.gz for one case")
    parser.add_argument("--threads", metavar="N", type=int, default=0, help="default: as many as there are cores")
    args = parser.parse_args(words)
    failed = 0
    try:
        runner = Runner(threads=args.threads)
        found = list(cases(args.images, runner.channels))
        is_one = args.out.name.endswith(".nii.gz") and not args.out.is_dir()
        if is_one and len(found) > 1:
            raise MistakeError(f"{args.out}: one output file for {len(found)} cases; give a folder")
        if args.out.suffix == ".nii":
            raise MistakeError(f"{args.out}: label maps are written as .nii.gz; name it so, or give a folder")
        (args.out.parent if is_one else args.out).mkdir(parents=True, exist_ok=True)
        for name, images in found:
            target = args.out if is_one else args.out / f"{name}.nii.gz"
            try:
                if target.exists():
                    sys.stderr.write(f"{target}: exists already, skipped\n")
                    continue
                runner.write(images, target)
                sys.stdout.write(f"{target}\n")
            except Exception as error:  # nibabel and numpy raise many kinds for damaged files
                failed += 1
                sys.stderr.write(f"case '{name}': {line_of(error)}\n")
    except (MistakeError, OSError) as error:
        sys.stderr.write(f"{line_of(error)}\n")
        return 2
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
