"""Preprocessed cases on disk: what training reads at random, memory-mapped, so that a patch costs only its own bytes.

Idea: reading, reorienting and resampling happen once. Images are resampled but not normalised, because CT statistics
belong to the training cases of a fold. Labels have the data set's own values, so that training on it alone and
together with others read the same cache. Beside the arrays lie the foreground voxels that oversampling draws from and
the intensity samples of the fingerprint, both seeded by the case's name.
Source: nnU-Net's preprocessed folder (`class_locations`, `DatasetFingerprintExtractor`).
Deviations: each case is its own folder, moved into place whole and rebuilt when its source files change.

```
FOLDER/NAME-KEY/CASE/  image.npy (c z y x) float32   labels.npy (z y x) uint8 or int16   samples.npy (c n) float32
                       coordinates.npz: label -> (n 3) int32                             case.json
                       instances.npy (z y x) uint8, int16 or int32, where instances are separated
```
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.case import Case, load_case, stamps
from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.data.fingerprint import Fingerprint, fingerprint
from maskmed_zoo.data.instances import components, instances_file, read_instances, resample_instances
from maskmed_zoo.data.predicted import refuse_shared_names
from maskmed_zoo.data.resample import check_resampled, resample_image, resample_labels
from maskmed_zoo.errors import DataError, Failures, OutputError, first_line, reason_of
from maskmed_zoo.files import read_json, remove_abandoned, write_json
from maskmed_zoo.lock import alone_in
from maskmed_zoo.memory import within_memory

FORMAT = 2
"""Raise this number when what is written, or how it is computed, changes."""
LIMIT = 10_000
"""Most intensity samples per channel, and most coordinates per label, that are kept of a case."""

_STATISTICS = ("means", "stds", "lows", "highs")

KEPT = {"image.npy", "labels.npy", "samples.npy", "coordinates.npz"}
"""Files of every case."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class CachedCase:
    """A preprocessed case: arrays on the cache's spacing, not normalised, and statistics (c) over all of its voxels.

    Arrays are opened when they are asked for and not kept, so that a data set of any size needs neither memory nor
    open files. Each raises `DataError` if its file is missing or damaged.
    """

    identifier: str
    folder: Path
    means: NDArray[np.float64]
    stds: NDArray[np.float64]
    lows: NDArray[np.float64]
    highs: NDArray[np.float64]
    shape: tuple[int, ...]

    @property
    def image(self) -> NDArray[np.float32]:
        """(c z y x), a read-only map."""
        return self._array("image", "f", self.shape)

    @property
    def labels(self) -> NDArray[Any]:
        """(z y x), a read-only map."""
        return self._array("labels", "iu", self.shape[1:])

    @property
    def instances(self) -> NDArray[Any]:
        """(z y x) numbers of objects, 0 for none, a read-only map; only where the cache was asked for them."""
        return self._array("instances", "iu", self.shape[1:])

    @property
    def samples(self) -> NDArray[np.float32]:
        """(c n) foreground intensities in the image's units, a read-only map."""
        return self._array("samples", "f", (self.shape[0], None))

    @property
    def coordinates(self) -> dict[int, NDArray[np.int32]]:
        """(n 3) voxel indices z, y, x of each foreground label that is present, 'ignore' left out."""
        path = self.folder / "coordinates.npz"
        # NumPy leaves a damaged file open that it has opened itself.
        with _reading(self.folder), _plain(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {int(label): _checked(label, archive[label], "iu", (None, 3)) for label in archive.files}
            if not all(len(places) for places in found.values()):
                raise ValueError("a label without a voxel")
            return found

    def _array(self, name: str, kinds: str, shape: Sequence[int | None]) -> NDArray[Any]:
        with _reading(self.folder):
            path = _plain(self.folder / f"{name}.npy")
            return _checked(name, np.load(path, mmap_mode="r", allow_pickle=False), kinds, shape)


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


def _numbers(values: Any, count: int) -> NDArray[np.float64]:
    array = np.asarray(values)
    if array.dtype.kind not in "fi" or array.shape != (count,) or not np.isfinite(array).all():
        raise ValueError(f"expected {count} finite numbers")
    return array.astype(np.float64)


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
    """The preprocessed cases of one data set at one spacing (z, y, x) mm, below `folder`.

    `instances`: separated as the connected parts of the resampled labels, or by the data set's map of them.
    """

    def __init__(
        self,
        folder: Path,
        dataset: RawDataset,
        spacing: Sequence[float],
        instances: Literal["components", "map"] | None = None,
    ) -> None:
        self.dataset, self.instances = dataset, instances
        z, y, x = (float(size) for size in spacing)
        self.spacing = (z, y, x)
        content = [str(dataset.root.resolve()), self.spacing, *([instances] if instances else [])]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
        self.folder = Path(folder) / f"{dataset.root.resolve().name}-{key}"

    def prepare(
        self,
        cases: Sequence[Case],
        workers: int = 0,
        progress: Progress | None = None,
        failures: Failures | None = None,
    ) -> None:
        """Build what is missing or out of date, with `workers` threads (0: in this one).

        `progress(done, total)` counts all `cases`. Raises one `DataError` for all cases that cannot be used, after the
        others, unless they are to be collected in `failures`; `OutputError` if the folder cannot be written.
        """
        if self.instances is not None:
            refuse_shared_names({case.identifier for case in cases})
        kept = Failures() if failures is None else failures
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error
        remove_abandoned(self.folder, ".unfinished-*")
        with ThreadPoolExecutor(max(1, workers)) as pool:  # SciPy and zlib do their work outside the interpreter lock
            if workers > 0:
                tasks = [pool.submit(self._ensure, case, kept) for case in cases]
                done = (task.result() for task in as_completed(tasks))
            else:
                done = (self._ensure(case, kept) for case in cases)
            try:
                for count, _ in enumerate(done, 1):
                    if progress is not None:
                        progress(count, len(cases))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
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
            means, stds, lows, highs = (_numbers(record[name], channels) for name in _STATISTICS)
            shape = tuple(int(size) for size in record["shape"])
            if len(shape) != 4 or shape[0] != channels:
                raise ValueError(f"shape {shape}, of {channels} channels")
        return CachedCase(case.identifier, folder, means, stds, lows, highs, shape)

    def _ensure(self, case: Case, failures: Failures) -> None:
        with failures.kept(), within_memory(f"{case.images[0]}: this case"):
            request = self._request(case)
            if not self._is_current(case, request):
                self._build(case, request)

    def _build(self, case: Case, request: dict[str, Any]) -> None:
        image, labels, geometry = load_case(case, self.dataset)
        check_resampled(geometry, self.spacing, 2 * len(image) + 2)
        if labels is None:
            raise DataError(
                f"{case.images[0]}: case '{case.identifier}' has no label map, the cache is for training cases"
            )
        image = resample_image(image, geometry.spacing, self.spacing)
        arrays: dict[str, NDArray[Any]] = {"image": image, "labels": resample_labels(labels, image.shape[1:])}
        values = list(self.dataset.labels.foreground.values())
        if self.instances == "components":
            arrays["instances"] = components(arrays["labels"], values)
        elif self.instances == "map":
            numbers = read_instances(case, self.dataset, labels, geometry)
            arrays["instances"] = resample_instances(numbers, labels, arrays["labels"], values, geometry.spacing)
        target = self.folder / case.identifier
        unfinished: Path | None = None
        try:
            unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=self.folder))
            whole = unfinished / "case"
            whole.mkdir()
            self._write(whole, case, arrays, request)
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
            "spacing": list(self.spacing),
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

    def _write(self, folder: Path, case: Case, arrays: dict[str, NDArray[Any]], request: dict[str, Any]) -> None:
        image, labels = arrays["image"], arrays["labels"]
        generator = np.random.default_rng(zlib.crc32(os.fsencode(case.identifier)))
        kept = labels.ravel()
        ignore = self.dataset.labels.ignore
        foreground = np.flatnonzero(kept > 0 if ignore is None else (kept > 0) & (kept != ignore))
        coordinates: dict[str, NDArray[np.int32]] = {}
        for label in np.unique(kept[foreground]):
            chosen = _draw(generator, foreground[kept[foreground] == label])
            coordinates[str(label)] = np.stack(np.unravel_index(chosen, labels.shape), axis=1).astype(np.int32)
        flat = image.reshape(image.shape[0], -1)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array.astype(np.uint8) if name != "image" and array.max() <= 255 else array)
        np.save(folder / "samples.npy", flat[:, _draw(generator, foreground)])
        np.savez(folder / "coordinates.npz", **cast(dict[str, Any], coordinates))
        record = {
            "request": request,
            "shape": list(image.shape),
            "spacing": list(self.spacing),
            "means": flat.mean(axis=1, dtype=np.float64).tolist(),
            "stds": flat.std(axis=1, dtype=np.float64).tolist(),
            "lows": flat.min(axis=1).tolist(),
            "highs": flat.max(axis=1).tolist(),
            "sizes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        }
        write_json(folder / "case.json", record)

    def _unwritable(self, error: OSError | ValueError) -> OutputError:
        return OutputError(
            f"{self.folder}: cache cannot be written ({reason_of(error)}); free space or choose another folder"
        )


Parts = Sequence[tuple[CaseCache, Sequence[Case]]]
"""Cases of several data sets, each with the cache that holds them."""


def fingerprint_of(parts: Parts) -> Fingerprint:
    """Foreground statistics per channel over the given (training) cases, all of them prepared."""
    return fingerprint([cache.load(case).samples for cache, cases in parts for case in cases])


def _draw(generator: np.random.Generator, indices: NDArray[np.intp]) -> NDArray[np.intp]:
    """At most `LIMIT` of the indices, drawn without replacement, in ascending order."""
    return indices if indices.size <= LIMIT else np.sort(generator.choice(indices, LIMIT, replace=False))
