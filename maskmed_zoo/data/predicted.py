"""What is known about predicted files: which weights made each, what its values mean, and that nobody changed it since.

```
OUT/.maskmed_predictions.json
    weights_sha256   label map -> checksum of the weights that made it
    labels           checksum of weights -> label name -> value
    files            file of a case -> checksum of its content
    settings         label map -> settings of inference that it was made with, where these are known
    requests         label map -> checksum of the image and the settings that it was made with, where these are known
    replacing        label map -> weights that are making it, settings, request, and checksums of the files to come
```
The names let a label map be compared with references that number the same labels otherwise, as where several data sets
were merged in training. The checksums tell what `predict` made from what is the user's: another file of the name,
or a label map corrected by hand. A case is announced under `replacing` before its files are put in place and entered
after that, so whatever instant a process is killed at, each file there is known for what it is.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.formats import DEFAULT, ending_of, stem_of
from maskmed_zoo.errors import DataError
from maskmed_zoo.files import read_json, sha256_of, write_json
from maskmed_zoo.labels import Labels, LabelsError
from maskmed_zoo.lock import alone_in

STAMP = ".maskmed_predictions.json"
SUFFIX = "_instances"
WEIGHTS, LABELS, FILES, REPLACING = "weights_sha256", "labels", "files", "replacing"
REQUESTS, REQUEST, SETTINGS = "requests", "request", "settings"
PROBABILITIES = "_probabilities"
Form = Literal["nifti", "npz"]
"""Of a file of probabilities."""
FORMS: tuple[Form, ...] = ("nifti", "npz")


class PredictedFolder:
    """The record of a folder, as it was when this was made; tables that are missing or damaged are empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sums: dict[tuple[str, int, int, int], str] = {}
        self.tables = self._read()

    @contextmanager
    def held(self) -> Generator[None]:
        """Alone with the folder, among processes that ask for it, and with its record read anew."""
        with alone_in(self.folder):
            self.tables = self._read()
            yield

    def _read(self) -> dict[str, dict[str, Any]]:
        path = self.folder / STAMP
        try:
            given = _table(read_json(path) if path.exists() else None)
        except DataError:
            given = {}
        tables = {key: _table(given.get(key)) for key in (WEIGHTS, LABELS, FILES, SETTINGS, REQUESTS, REPLACING)}
        tables[FILES] = _checksums(tables[FILES])
        return tables

    def weights_of(self, name: str) -> str | None:
        """Checksum of the weights that made a label map, None where it is not known or the map was changed since.

        Folders of before the checksums of files are taken at their word.
        """
        made = self._entered(name)
        if made is not None and self._is_content(name, self.tables[FILES].get(name), unknown=True):
            return made
        weights, files = self._coming(name)
        return weights if self._is_content(name, files.get(name), unknown=False) else None

    def request_of(self, name: str) -> str | None:
        """Checksum of the image and settings that a label map was made with; None as for `weights_of`, or unknown."""
        request = self._known_of(name, REQUESTS, REQUEST)
        return request if isinstance(request, str) else None

    def is_made_with(self, name: str, weights_sha256: str, settings: Mapping[str, Any] | None) -> bool:
        """Whether a label map was made by these weights and, if given, with these settings.

        Records of before the settings are taken at their word, but for mirroring and post-processing, which there were
        not.
        """
        if self.weights_of(name) != weights_sha256:
            return False
        known = self._known_of(name, SETTINGS, SETTINGS)
        if settings is None or not isinstance(known, dict):
            return not {"mirror", "postprocessing"} & (settings or {}).keys()
        return known == dict(settings)

    def _known_of(self, name: str, table: str, key: str) -> Any:
        """What a table says of a label map, or an announcement under `key`; None as for `weights_of`, or unknown."""
        if self.weights_of(name) is None:
            return None
        entered = self._entered(name) is not None and self._is_content(name, self.tables[FILES].get(name), unknown=True)
        return self.tables[table].get(name) if entered else _table(self.tables[REPLACING].get(name)).get(key)

    def labels_of(self, name: str) -> Labels | None:
        """The labels of a label map, also of one that was changed since; None where they are not known."""
        found = self.tables[LABELS].get(self.weights_of(name) or self._entered(name) or "")
        try:
            return Labels(cast(dict[str, Any], found)) if isinstance(found, dict) else None
        except LabelsError:
            return None

    def is_known(self, name: str, label_map: str) -> bool:
        """Whether a file of the case with this label map, and of no other case, is as `predict` left it."""
        return self.is_label_map(name) == (name == label_map) and self._is_as_left(name, label_map)

    def is_label_map(self, name: str) -> bool:
        """Whether `predict` made the label map of a case under this name, or was about to."""
        return name in self.tables[WEIGHTS] or name in self.tables[REPLACING]

    def _is_as_left(self, name: str, label_map: str) -> bool:
        if name in self.tables[FILES]:
            known = self._is_content(name, self.tables[FILES][name], unknown=False)
        else:
            # Records of before the checksums of files name label maps alone.
            known = label_map not in self.tables[FILES] and self._entered(label_map) is not None
        return known or self._is_content(name, self._coming(label_map)[1].get(name), unknown=False)

    def is_listed(self, name: str) -> bool:
        """Whether `predict` made a file of this name, or was about to; it may have been changed since."""
        coming = (self._coming(label_map)[1] for label_map in self.tables[REPLACING])
        return name in self.tables[FILES] or name in self.tables[WEIGHTS] or any(name in files for files in coming)

    def is_beside(self, name: str) -> bool:
        """Whether a file is listed here and is no label map, but lies beside one."""
        return self.is_listed(name) and not self.is_label_map(name)

    def is_predicted(self, name: str) -> bool:
        """Whether a file is listed here, and as `predict` left it."""
        return self.is_listed(name) and any(self._is_as_left(name, map_) for map_ in (name, *self.tables[REPLACING]))

    def is_begun(self, name: str, weights_sha256: str, settings: Mapping[str, Any] | None = None) -> bool:
        """Whether these weights were making a label map, with these settings if given, when they were interrupted."""
        known = _table(self.tables[REPLACING].get(name)).get(SETTINGS)
        is_same = settings is None or known is None or known == dict(settings)
        return self._coming(name)[0] == weights_sha256 and is_same

    def announce(
        self,
        name: str,
        weights_sha256: str,
        labels: Mapping[str, int],
        files: Mapping[str, str],
        request: str | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Write down what is about to be put in place: a label map, and the checksums of its case's files by name.

        As `enter`, while the record is held. What is in place of an earlier announcement is entered first.
        """
        there = {f: sha256 for f, sha256 in self._coming(name)[1].items() if self._is_content(f, sha256, unknown=False)}
        self.tables[FILES] |= there
        if name in there:
            self._enter(name)
        self.tables[LABELS][weights_sha256] = dict(labels)
        how = {REQUEST: request, SETTINGS: None if settings is None else dict(settings)}
        self.tables[REPLACING][name] = {WEIGHTS: weights_sha256, FILES: dict(files), **how}
        self._write()

    def enter(self, name: str, gone: Sequence[str] = ()) -> None:
        """Write down that what was announced for a label map is in place, and which files of the case are gone."""
        files = self._coming(name)[1]
        self.tables[FILES] = {other: sha256 for other, sha256 in self.tables[FILES].items() if other not in gone}
        self.tables[FILES] = dict(sorted((self.tables[FILES] | files).items()))
        self._enter(name)
        del self.tables[REPLACING][name]
        self._write()

    def _enter(self, name: str) -> None:
        """The weights, the settings and the request of what was announced for a label map."""
        weights, files = self._coming(name)
        kept = {other: known for other, known in self.tables[WEIGHTS].items() if other not in files}
        self.tables[WEIGHTS] = dict(sorted((kept | {name: weights}).items()))
        for table, key in ((REQUESTS, REQUEST), (SETTINGS, SETTINGS)):
            known = _table(self.tables[REPLACING].get(name)).get(key)
            others = {other: kept for other, kept in self.tables[table].items() if other != name}
            self.tables[table] = others if known is None else dict(sorted((others | {name: known}).items()))

    def _entered(self, name: str) -> str | None:
        weights = self.tables[WEIGHTS].get(name)
        return weights if isinstance(weights, str) else None

    def _coming(self, name: str) -> tuple[str | None, dict[str, Any]]:
        """The weights that are making a label map, None without any, and checksums of the files to come."""
        facts = _table(self.tables[REPLACING].get(name))
        weights = facts.get(WEIGHTS)
        return weights if isinstance(weights, str) else None, _checksums(_table(facts.get(FILES)))

    def _is_content(self, name: str, sha256: str | None, *, unknown: bool) -> bool:
        """Whether a file has this checksum; `unknown` where none is known, or there is no file to compare."""
        path = self.folder / name
        try:
            return unknown if sha256 is None or not path.is_file() else self._sha256_of(path) == sha256
        except OSError:
            return False

    def _sha256_of(self, path: Path) -> str:
        """Checksum of a file, read once for as long as it stays the same."""
        status = path.stat()
        key = (path.name, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._sums:
            self._sums[key] = sha256_of(path)
        return self._sums[key]

    def _write(self) -> None:
        write_json(self.folder / STAMP, {key: table for key, table in self.tables.items() if table})


def _table(content: Any) -> dict[str, Any]:
    """A part of the record; empty where it is damaged."""
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}


def _checksums(files: dict[str, Any]) -> dict[str, str]:
    """Checksums by name; what is none becomes one that no file has, and what is no name in the folder is left out."""
    return {
        name: sha256 if isinstance(sha256, str) else "" for name, sha256 in files.items() if Path(name).name == name
    }


def files_of(target: Path, *, with_instances: bool, probabilities: Sequence[Form] = ()) -> list[Path]:
    """All files of a case whose label map is `target`, the label map last."""
    numbers, npz = objects_beside(target), npz_beside(target)
    objects = [numbers, facts_beside(numbers)] if with_instances else []
    series = [probabilities_beside(target)] if "nifti" in probabilities else []
    return [*objects, *series, *([npz, npz.with_suffix(".pkl")] if "npz" in probabilities else []), target]


def objects_beside(label_map: Path) -> Path:
    """`NAME_instances.nii.gz` beside `NAME.nii.gz`."""
    return label_map.with_name(f"{stem_of(label_map)}{SUFFIX}{ending_of(label_map) or DEFAULT}")


def probabilities_beside(label_map: Path) -> Path:
    """`NAME_probabilities.nii.gz` beside `NAME.nii.gz`."""
    return label_map.with_name(f"{stem_of(label_map)}{PROBABILITIES}{ending_of(label_map) or DEFAULT}")


def npz_beside(label_map: Path) -> Path:
    """`NAME.npz` beside `NAME.nii.gz`."""
    return label_map.with_name(f"{stem_of(label_map)}.npz")


def is_objects_file(path: Path, record: PredictedFolder | None = None) -> bool:
    """Whether a file is the map of objects of a label map beside it, and not the label map of a case of such a name.

    The record of `predict` says so; without one, it is where there is no image of the name in `imagesTr` beside
    `labelsTr`, or the like. `record`: that of its folder, for many files of one.
    """
    stem, ending = stem_of(path), ending_of(path) or DEFAULT
    label_map = path.with_name(f"{stem.removesuffix(SUFFIX)}{ending}")
    if not stem.endswith(SUFFIX) or not path.is_file() or not label_map.exists():
        return False
    record = record or PredictedFolder(path.parent)
    if record.is_listed(path.name):
        return not record.is_label_map(path.name)
    folder = path.parent
    images = folder.with_name(folder.name.replace("labels", "images", 1))
    return images == folder or not (images / f"{stem}_0000{ending}").exists()


def refuse_shared_names(names: Collection[str]) -> None:
    """Raise `DataError` where the map of objects of a case would have the name of another's label map."""
    for name in names:
        if f"{name}{SUFFIX}" in names:
            raise DataError(
                f"cases '{name}' and '{name}{SUFFIX}': the objects of the first would be written over the label map of "
                f"the second; rename one, or do not separate instances (data.instances)"
            )


def facts_beside(numbers: Path) -> Path:
    """`NAME_instances.json` beside `NAME_instances.nii.gz`."""
    return numbers.with_name(f"{stem_of(numbers)}.json")


def renumbered(array: NDArray[np.int16], own: Labels | None, labels: Labels) -> NDArray[np.int16]:
    """A predicted map whose values mean `own`, with the values that `labels` gives the same names; others become 0.

    As it is where `own` is not known, or where each side has foreground names that the other lacks, other words then.
    """
    if own is None:
        return array
    ours, theirs = own.foreground.keys(), labels.foreground.keys()
    if not (ours <= theirs or theirs <= ours) or array.min() < 0 or array.max() > max(own.values()):
        return array
    return own.renumbering(labels)[array]
