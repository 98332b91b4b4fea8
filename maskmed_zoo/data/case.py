"""One patient or scan: its files, found by name, and its arrays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.annotated import check_annotated
from maskmed_zoo.data.formats import (
    DEFAULT,
    ending_of,
    read_image,
    read_labels,
    read_small_image,
    stem_of,
    written_endings,
)
from maskmed_zoo.data.image import Geometry, Volume, check_same_geometry
from maskmed_zoo.data.problem import ProblemError, Tell, refuse
from maskmed_zoo.errors import DataError
from maskmed_zoo.files import is_folder

if TYPE_CHECKING:
    from maskmed_zoo.data.dataset import RawDataset

_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Case:
    """One patient or scan: its channel files in channel order, and its label map if it has one.

    `annotated` names the labels that were annotated, None: all. A voxel of value 0 may be any of the others.
    """

    identifier: str
    images: tuple[Path, ...]
    label: Path | None
    annotated: frozenset[str] | None = None


def stamps(paths: Sequence[Path], root: Path) -> list[list[str | int]]:
    """Name (below `root` where it lies there), size and time of change of files, by which a change is noticed.

    Raises `DataError` for a file that is not there.
    """
    files: list[list[str | int]] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: no such file, or not readable; check the data set") from error
        name = path.relative_to(root) if path.is_relative_to(root) else path.absolute()
        files.append([str(name), status.st_size, status.st_mtime_ns])
    return files


def load_case(case: Case, dataset: RawDataset | None) -> tuple[NDArray[np.float32], NDArray[np.int16] | None, Geometry]:
    """Read a case: image float32 (c z y x), labels int16 (z y x) or None, geometry of its first channel.

    `dataset` may be None for a case without labels. Raises `DataError` for unreadable files, channels or labels on
    different voxel grids, and label values that the data set does not declare or the case does not list as annotated.
    """
    image, first = _channels(case, read_image)
    if case.label is None:
        return image, None, first.geometry
    label = read_labels(case.label)
    check_same_geometry(first, label)
    if dataset is not None:
        check_values(set(np.unique(label.array).tolist()), case, dataset)
    return image, label.array, first.geometry


def load_image(case: Case) -> tuple[NDArray[Any], Geometry]:
    """Read the image of a case for prediction: (c z y x) and its geometry, with as little memory as its files allow.

    Whole numbers of up to 16 bits stay in their type, all else is float32. Raises `DataError` as `load_case` does.
    """
    image, first = _channels(case, read_small_image)
    return image, first.geometry


def _channels(case: Case, read: Callable[[Path], Volume]) -> tuple[NDArray[Any], Volume]:
    """The channels of a case as one array (c z y x), and the first of them."""
    first = read(case.images[0])
    if len(case.images) == 1:
        return first.array[None], first
    image = np.empty((len(case.images), *first.array.shape), first.array.dtype)
    for index, path in enumerate(case.images):
        volume = read(path) if index else first
        check_same_geometry(first, volume)
        if volume.array.dtype != image.dtype:
            image = image.astype(np.promote_types(image.dtype, volume.array.dtype), copy=False)
        image[index] = volume.array
    return image, first


def check_values(values: set[int], case: Case, dataset: RawDataset, *, tell: Tell = refuse) -> None:
    """Tell if the label map of a case holds values that are not declared, or not listed as annotated in it."""
    path = case.label or dataset.root
    unknown = sorted(values - set(dataset.labels.values()))
    if unknown:
        shown = ", ".join(map(str, unknown[:10])) + (", …" if len(unknown) > 10 else "")
        declared = f"0 … {max(dataset.labels.values())} of {dataset.root / 'dataset.json'}"
        what = f"label values {shown}, expected {declared}"
        tell(ProblemError(path, what, "declare or renumber them", kind="label values", case=case.identifier))
    check_annotated(values, path, dataset.labels, dataset.annotated(case), tell=tell)


def image_files(folder: Path, endings: tuple[str, ...] | None = None) -> list[Path]:
    """Visible files of the endings, by default of all that can be written, sorted."""
    endings = endings or written_endings()
    if not is_folder(folder):
        raise DataError(f"{folder}: no such folder; expected {' or '.join(endings)} files there")
    return sorted(p for p in folder.iterdir() if ending_of(p, endings) and not p.name.startswith("."))


def grouped(
    folder: Path, files: Sequence[Path], channels: int, *, plain: bool = False, tell: Tell = refuse
) -> dict[str, tuple[Path, ...]]:
    """Identifier -> channel files in order, sorted by identifier, of the `files` in a folder.

    Files that belong to no channel, and channels that are missing, are told and left out; `DataError` without any.
    """
    found: dict[str, dict[int, Path]] = {}
    for stem, count in Counter(map(stem_of, files)).items():
        if count > 1:
            what = f"'{stem}' is there in files of several formats"
            tell(ProblemError(folder, what, "keep one of them", kind="file name", case=stem))
    ending = (ending_of(files[0]) if files else None) or DEFAULT
    for path in files:
        match = _CHANNEL.fullmatch(stem_of(path))
        if plain:
            found[stem_of(path)] = {0: path}
        elif match is None and path.with_name(f"{stem_of(path)}_0000{ending}").exists():
            what, remedy = "no channel number, and no image beside one", "is it a label map? move it away"
            tell(ProblemError(path, what, remedy, kind="file name", case=stem_of(path)))
        elif match is None:
            remedy = f"rename it to {stem_of(path)}_0000{ending}"
            tell(ProblemError(path, "no channel number", remedy, kind="file name", case=stem_of(path)))
        elif int(match[2]) >= channels:
            what = f"channel {int(match[2])}, but {channels} declared (counted from 0)"
            remedy = "remove it or correct channel_names"
            tell(ProblemError(path, what, remedy, kind="surplus channel", case=match[1]))
        else:
            found.setdefault(match[1], {})[int(match[2])] = path
    if not files:
        raise DataError(f"{folder}: no images; expected files named NAME_0000{ending}")
    for name, group in found.items():
        for channel in range(channels):
            if channel not in group:
                what = f"case '{name}' lacks {name}_{channel:04d}{ending} (channel {channel})"
                tell(ProblemError(folder, what, "add it", kind="missing channel", case=name))
    return {name: tuple(path for _, path in sorted(found[name].items())) for name in sorted(found)}
