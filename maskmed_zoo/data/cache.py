"""Preprocessed cases on disk: what training reads at random, memory-mapped, so that a patch costs only its own bytes.

Idea: reading, cropping, normalizing and resampling happen once; a patch is read as the network sees it. Labels have
the data set's own values, so that training on it alone and together with others read the same cache, unless its CT
statistics are others then, and -1 where background lies outside the non-zero region. Beside the arrays lie the
foreground voxels that oversampling draws from, seeded by the case's name.
Source: nnU-Net's preprocessed folder (`class_locations`).
Deviations: each case is its own folder, moved into place whole and rebuilt when its source files change.

```
FOLDER/NAME-KEY/CASE/  image.npy (c z y x) uint16, see `data.storage`, or float32   labels.npy (z y x) int8 or int16
                       coordinates.npz: label -> (n 3) int32                        case.json
                       instances.npy (z y x) uint8, int16 or int32, where instances are separated
```
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.case import Case, load_case, stamps
from maskmed_zoo.data.case_facts import FactsFolder, facts_of
from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.data.instances import components, instances_file, read_instances, resample_instances
from maskmed_zoo.data.over_cases import Progress, over_cases
from maskmed_zoo.data.predicted import refuse_shared_names
from maskmed_zoo.data.preprocess import Cropped, Preprocessing, crop_and_normalize
from maskmed_zoo.data.resample import target_shape
from maskmed_zoo.data.storage import Coding, ImageWriter, Spread, StoredImage, coding_of
from maskmed_zoo.errors import DataError, Failures, OutputError, first_line, reason_of
from maskmed_zoo.files import read_json, remove_abandoned, write_json
from maskmed_zoo.lock import alone_in
from maskmed_zoo.memory import GIB, within_memory

FORMAT = 3
"""Raise this number when what is written, or how it is computed, changes."""
LIMIT, SHARE = 10_000, 0.01
"""Most coordinates per label that are kept of a case, or this share of its voxels where that is more."""
KEPT = {"image.npy", "labels.npy", "coordinates.npz"}
"""Files of every case."""


@dataclass(frozen=True, eq=False)
class CachedCase:
    """A preprocessed case: arrays on the cache's spacing, of normalized values.

    Arrays are opened when they are asked for and not kept, so that a data set of any size needs neither memory nor
    open files. Each raises `DataError` if its file is missing or damaged.
    """

    identifier: str
    folder: Path
    shape: tuple[int, ...]
    codings: tuple[Coding, ...] | None

    @property
    def image(self) -> StoredImage:
        """(c z y x), of which an index reads a part as float32."""
        return StoredImage(self._array("image", "f" if self.codings is None else "u", self.shape), self.codings)

    @property
    def labels(self) -> NDArray[Any]:
        """(z y x), a read-only map; -1 for background outside the non-zero region."""
        return self._array("labels", "i", self.shape[1:])

    @property
    def instances(self) -> NDArray[Any]:
        """(z y x) numbers of objects, 0 for none, a read-only map; only where the cache was asked for them."""
        return self._array("instances", "iu", self.shape[1:])

    @property
    def coordinates(self) -> Mapping[int, NDArray[np.int32]]:
        """(n 3) voxel indices z, y, x of each foreground label that is present, 'ignore' left out."""
        return _Places(self.folder)

    def _array(self, name: str, kinds: str, shape: Sequence[int | None]) -> NDArray[Any]:
        with _reading(self.folder):
            path = _plain(self.folder / f"{name}.npy")
            return _checked(name, np.load(path, mmap_mode="r", allow_pickle=False), kinds, shape)


class _Places(Mapping[int, NDArray[np.int32]]):
    """Voxel indices (n 3) by label; those of a label are read when they are asked for, and no others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with self._archive() as archive:
            self._names = {int(name): name for name in archive.files}

    def __getitem__(self, label: int) -> NDArray[np.int32]:
        name = self._names[label]
        with self._archive() as archive:
            places = _checked(name, archive[name], "iu", (None, 3))
            if not len(places):
                raise ValueError("a label without a voxel")
            return places

    def __iter__(self) -> Iterator[int]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @contextmanager
    def _archive(self) -> Generator[Any]:
        # NumPy leaves a damaged file open that it has opened itself.
        path = self.folder / "coordinates.npz"
        with _reading(self.folder), _plain(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            yield archive


def _plain(path: Path) -> Path:
    """A path at which no pipe waits for somebody to write."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name} is no plain file")
    return path


def _checked(name: str, array: NDArray[Any], kinds: str, shape: Sequence[int | None]) -> NDArray[Any]:
    """An array of one of these kinds of numbers; None in its shape stands for any length."""
    is_fit = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    if array.dtype.kind not in kinds or not is_fit:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
    return array


def _codings(record: Any, channels: int) -> tuple[Coding, ...] | None:
    """How the channels are kept, as a record says; `ValueError` for other content."""
    if record is None:
        return None
    codings = tuple(Coding(**channel) for channel in record)
    numbers = [value for coding in codings for value in coding.to_dict().values()]
    if len(codings) != channels or not all(type(n) in (float, int) and math.isfinite(n) for n in numbers):
        raise ValueError(f"expected {channels} codings of finite numbers")
    return codings


@contextmanager
def _reading(folder: Path) -> Generator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{folder}: case '{folder.name}' is not in the cache; prepare it first") from error
    except Exception as error:  # NumPy and zipfile raise whatever a damaged file makes them raise
        reason = first_line(error)
        raise DataError(f"{folder}: damaged cache entry ({reason}); delete this folder and prepare again") from error


class CaseCache:
    """The cases of one data set, preprocessed in one way, below `folder`.

    `instances`: separated as the connected parts of the resampled labels, or by the data set's map of them.
    """

    def __init__(
        self,
        folder: Path,
        dataset: RawDataset,
        how: Preprocessing,
        instances: Literal["components", "map"] | None = None,
    ) -> None:
        self.dataset, self.how, self.instances = dataset, how, instances
        root = dataset.root.resolve()
        content = [str(root), how.key(), *([instances] if instances else [])]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
        self.folder, self.facts = Path(folder) / f"{root.name}-{key}", FactsFolder(Path(folder), dataset)

    def prepare(
        self,
        cases: Sequence[Case],
        workers: int = 0,
        progress: Progress | None = None,
        failures: Failures | None = None,
    ) -> None:
        """Build what is missing or out of date, with `workers` threads (0: in this one).

        `progress(done, total)` counts all `cases`. Raises one `DataError` for all cases that cannot be used, after the
        others, unless they are to be collected in `failures`; `OutputError` if the folder cannot be written, or its
        disk cannot hold the cases of which the size is known.
        """
        if self.instances is not None:
            refuse_shared_names({case.identifier for case in cases})
        kept = Failures() if failures is None else failures
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error
        remove_abandoned(self.folder, ".unfinished-*")
        ensure = partial(self._ensure, failures=kept)
        # Where no size is known yet, the first case is built alone, and the others are judged by it.
        alone = 0 if any(self.facts.read(case) is not None for case in cases) else 1
        over_cases(cases[:alone], ensure, workers=0, progress=_counted(progress, 0, len(cases)))
        self._check_disk(cases)
        over_cases(cases[alone:], ensure, workers=workers, progress=_counted(progress, alone, len(cases)))
        if failures is None:
            kept.tell(len(cases), f"the others are prepared in {self.folder}", in_one_line=True)

    def load(self, case: Case) -> CachedCase:
        """A prepared case; `DataError` if it was not prepared or its record is damaged."""
        folder = self.folder / case.identifier
        with _reading(folder):
            if not folder.is_dir():
                raise FileNotFoundError
            record = read_json(folder / "case.json")
            channels = len(case.images)
            shape = tuple(int(size) for size in record["shape"])
            if len(shape) != 4 or shape[0] != channels:
                raise ValueError(f"shape {shape}, of {channels} channels")
            return CachedCase(case.identifier, folder, shape, _codings(record["codings"], channels))

    def _ensure(self, case: Case, failures: Failures) -> None:
        with failures.kept(), within_memory(f"{case.images[0]}: this case"):
            request = self._request(case)
            if not self._is_current(case, request):
                self._build(case, request)

    def _build(self, case: Case, request: dict[str, Any]) -> None:
        image, labels, geometry = load_case(case, self.dataset)
        if labels is None:
            raise DataError(
                f"{case.images[0]}: case '{case.identifier}' has no label map, the cache is for training cases"
            )
        cropped = crop_and_normalize(image, labels, geometry, self.how, values=2)
        if self.facts.read(case) is None:  # so that a fingerprint need not read the case again
            self.facts.keep(case, facts_of(image, labels, geometry.spacing))
        arrays: dict[str, NDArray[Any]] = {"labels": cropped.resampled_labels()}
        values = list(self.dataset.labels.foreground.values())
        if self.instances == "components":
            arrays["instances"] = components(arrays["labels"], values)
        elif self.instances == "map":
            box = cropped.region.box
            numbers = read_instances(case, self.dataset, labels, geometry)[box]
            arrays["instances"] = resample_instances(numbers, labels[box], arrays["labels"], values, geometry.spacing)
        target = self.folder / case.identifier
        unfinished: Path | None = None
        try:
            unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=self.folder))
            whole = unfinished / "case"
            whole.mkdir()
            self._write(whole, case, cropped, arrays, request)
            with alone_in(self.folder):
                if self._is_current(case, request):  # another process was faster, and may be reading by now
                    return
                if os.path.lexists(target):
                    target.replace(unfinished / "outdated")
                whole.replace(target)
        except (OSError, ValueError) as error:
            if not self._is_current(case, request):
                raise self._unwritable(error) from error
        finally:
            if unfinished is not None:
                shutil.rmtree(unfinished, ignore_errors=True)

    def _request(self, case: Case) -> dict[str, Any]:
        """All that an entry depends on; an entry of another request is rebuilt."""
        numbers = [instances_file(case, self.dataset)] if self.instances == "map" else []
        files = stamps((*case.images, *([case.label] if case.label else []), *numbers), self.dataset.root)
        return {
            "format": FORMAT,
            "how": self.how.key(),
            "labels": dict(self.dataset.labels),
            "annotated": sorted(self.dataset.annotated(case)),
            "instances": self.instances,
            "files": files,
        }

    def _is_current(self, case: Case, request: dict[str, Any]) -> bool:
        folder = self.folder / case.identifier
        try:
            record = read_json(folder / "case.json")
            files = [folder / name for name in record["sizes"]]
            sizes = {path.name: path.stat().st_size for path in files if path.is_file()}
            return record["request"] == request and record["sizes"] == sizes and sizes.keys() >= KEPT
        except (DataError, OSError, ValueError, KeyError, TypeError):
            return False

    def _write(
        self, folder: Path, case: Case, cropped: Cropped, arrays: dict[str, NDArray[Any]], request: dict[str, Any]
    ) -> None:
        codings = [coding for coding in (coding_of(Spread.of(channel)) for channel in cropped.channels) if coding]
        kept = tuple(codings) if len(codings) == len(cropped.channels) else None
        shape = (len(cropped.channels), *cropped.region.resampled)
        with ImageWriter(folder / "image.npy", shape, kept) as writer:
            cropped.image_into(writer.channels)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array.astype(_smallest(name, int(array.max()))))
        np.savez(folder / "coordinates.npz", **cast(dict[str, Any], self._coordinates(case, arrays["labels"])))
        record = {
            "request": request,
            "shape": list(shape),
            "codings": None if kept is None else [coding.to_dict() for coding in kept],
            "sizes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        }
        write_json(folder / "case.json", record)

    def _coordinates(self, case: Case, labels: NDArray[Any]) -> dict[str, NDArray[np.int32]]:
        """Voxels of each foreground label to draw from; 'ignore' is none."""
        generator = np.random.default_rng(zlib.crc32(os.fsencode(case.identifier)))
        kept, ignore = labels.ravel(), self.dataset.labels.ignore
        foreground = np.flatnonzero(kept > 0 if ignore is None else (kept > 0) & (kept != ignore))
        coordinates: dict[str, NDArray[np.int32]] = {}
        for label in np.unique(kept[foreground]):
            chosen = _draw(generator, foreground[kept[foreground] == label])
            coordinates[str(label)] = np.stack(np.unravel_index(chosen, labels.shape), axis=1).astype(np.int32)
        return coordinates

    def _missing(self, cases: Sequence[Case]) -> list[Case]:
        """The cases that are to be built; one whose files are not there is told when it is its turn."""

        def is_missing(case: Case) -> bool:
            try:
                return not self._is_current(case, self._request(case))
            except DataError:
                return False

        return [case for case in cases if is_missing(case)]

    def _check_disk(self, cases: Sequence[Case]) -> None:
        """Raise `OutputError`, before the cases are built, where the disk cannot hold those that are missing.

        The size of a case is known from its facts; one of which it is not counts as the mean of the others.
        """
        missing = self._missing(cases)
        if not missing:
            return
        voxels: list[int] = []
        for facts in map(self.facts.read, cases):
            if facts is not None:
                voxels.append(math.prod(target_shape(facts.shape_after_crop, facts.spacing, self.how.spacing)))
        if not voxels:
            return
        labels = 1 if max(self.dataset.labels.values()) <= 127 else 2
        each = 2 * len(self.dataset.channels) + labels + (2 if self.instances else 0)
        needed, free = each * len(missing) * sum(voxels) / len(voxels), shutil.disk_usage(self.folder).free
        if needed > free:
            raise OutputError(
                f"{self.folder}: {len(missing)} preprocessed cases need about {needed / GIB:.2f} GiB, the disk has "
                f"{free / GIB:.2f} free; free some, choose a folder on another disk, or take a larger spacing"
            )

    def _unwritable(self, error: OSError | ValueError) -> OutputError:
        return OutputError(
            f"{self.folder}: cache cannot be written ({reason_of(error)}); free space or choose another folder"
        )


Parts = Sequence[tuple[CaseCache, Sequence[Case]]]
"""Cases of several data sets, each with the cache that holds them."""


def _smallest(name: str, largest: int) -> type[np.integer]:
    """The type in which labels, or numbers of objects, are kept."""
    if name == "labels":
        return np.int8 if largest <= 127 else np.int16
    return np.uint8 if largest <= 255 else np.int16 if largest < 2**15 else np.int32


def _counted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of some of the cases as that of all of them."""
    return None if progress is None else lambda done, _: progress(before + done, total)


def _draw(generator: np.random.Generator, indices: NDArray[np.intp]) -> NDArray[np.intp]:
    """At most `LIMIT` of the indices, or `SHARE` of them, drawn without replacement, in ascending order."""
    wanted = max(LIMIT, math.ceil(SHARE * indices.size))
    return indices if indices.size <= wanted else np.sort(generator.choice(indices, wanted, replace=False))
