"""nnU-Net's raw data folder: which cases there are, what their channels and labels mean, and how they are split.

```
root/dataset.json                channel_names, labels, file_ending
root/imagesTr/CASE_0000.nii.gz   one file per channel       root/labelsTr/CASE.nii.gz   root/splits_final.json (or not)
root/annotated.json              for partial labels: {"CASE": [label values that were looked for], …}, every case listed
```
Source: nnU-Net v2, documentation/dataset_format.md; the default split is its seeded five-fold split, which is
scikit-learn's `KFold(5, shuffle=True, random_state=12345)` over the sorted identifiers, written out here.
Deviations: .nii.gz only; no region labels; a data set of fewer than five cases gets as many folds as cases;
`splits_final.json` lies in the raw folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.nifti import Geometry, check_same_geometry, read_image, read_labels
from maskmed_zoo.errors import DataError, nearest

ENDING = ".nii.gz"
ANNOTATED = "annotated.json"
NO_OBJECT = ("background", "ignore")
"""Labels that nobody looks for."""
_CHANNEL_FILE = re.compile(r"(.+)_(\d{4})\.nii\.gz")


@dataclass(frozen=True)
class Case:
    """One patient or scan: its channel files in channel order, and its label map if it has one.

    `annotated` names the labels that were looked for, None: all. A voxel of value 0 may be any of the others.
    """

    identifier: str
    images: tuple[Path, ...]
    label: Path | None
    annotated: frozenset[str] | None = None


@dataclass(frozen=True)
class RawDataset:
    """A checked nnU-Net raw folder; `labels` maps names to values as in dataset.json, 'ignore' included."""

    root: Path
    name: str
    channels: tuple[str, ...]
    labels: dict[str, int]
    cases: tuple[Case, ...]

    @property
    def ignore_label(self) -> int | None:
        """Value of the voxels that count neither in training nor in evaluation, if the data set has one."""
        return self.labels.get("ignore")

    def annotated(self, case: Case) -> frozenset[str]:
        """Names of the labels that were looked for in a case; background and 'ignore' are none of them."""
        return frozenset(foreground_labels(self.labels)) if case.annotated is None else case.annotated

    def renumbering(self, labels: Mapping[str, int]) -> NDArray[np.int16]:
        """Table from the values of the data set's own labels to those that `labels` gives the same names."""
        table = np.zeros(len(self.labels), np.int16)
        for name, value in self.labels.items():
            table[value] = labels[name]
        return table

    def splits(self, fold: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        """Training and validation cases of a fold, from `splits_final.json` if there is one, else nnU-Net's default.

        Raises `DataError` for a fold that does not exist, fewer than two cases, or a splits file that names unknown
        cases, names one twice, or leaves a side empty.
        """
        source = self.root / "splits_final.json"
        by_name = {case.identifier: case for case in self.cases}
        folds = _read_folds(source, by_name) if source.exists() else _default_folds(sorted(by_name), self.root)
        if not 0 <= fold < len(folds):
            where = source if source.exists() else self.root
            raise DataError(f"{where}: no fold {fold}; there are {len(folds)}, choose 0 … {len(folds) - 1}")
        train, val = folds[fold]
        return tuple(by_name[name] for name in train), tuple(by_name[name] for name in val)


def open_dataset(root: str | Path) -> RawDataset:
    """Read and check a raw folder (names and numbers of files, not their voxels); `DataError` says what to repair."""
    root = Path(root)
    source = root / "dataset.json"
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the data set's folder, the one that holds dataset.json")
    if not source.is_file():
        raise DataError(f"{root}: no dataset.json; describe channel_names, labels and file_ending there")
    content = _read_json(source)
    if not isinstance(content, dict):
        raise DataError(f"{source}: expected an object with channel_names, labels and file_ending")
    description = cast(dict[str, Any], content)
    if description.get("file_ending", ENDING) != ENDING:
        raise DataError(f"{source}: file_ending {description['file_ending']!r}, expected '{ENDING}'; convert the files")
    channels, labels = _channels(description, source), _labels(description, source)
    folder = root / "imagesTr"
    images = _grouped(folder, _files(folder), len(channels), plain=False)
    folder = root / "labelsTr"
    maps = {path.name.removesuffix(ENDING): path for path in _files(folder)}
    for name in images:
        if name not in maps:
            raise DataError(
                f"{folder}: no {name}{ENDING} for the image in {root / 'imagesTr'}; add it or remove the image"
            )
    for name, path in maps.items():
        if name not in images:
            raise DataError(
                f"{path}: no image {name}_0000{ENDING} in {root / 'imagesTr'}; add it or remove the label map"
            )
    source = root / ANNOTATED
    annotated = annotated_labels(source, labels, images) if source.exists() else {}
    cases = tuple(Case(name, files, maps[name], annotated.get(name)) for name, files in images.items())
    return RawDataset(root, str(description.get("name", root.name)), channels, labels, cases)


def find_cases(folder: str | Path, channels: int) -> tuple[Case, ...]:
    """Cases without labels in a folder of `NAME_0000.nii.gz, NAME_0001.nii.gz, …`, sorted by identifier.

    With one channel, files may also be called plainly `NAME.nii.gz`: so they are read if none ends in `_0000.nii.gz`.
    What `predict` wrote into the folder is left out. Raises `DataError` for a missing or empty folder, missing channel
    files, or more channels than the model has.
    """
    from maskmed_zoo.data.predicted import PredictedFolder

    folder = Path(folder)
    record = PredictedFolder(folder)
    files = [path for path in _files(folder) if not record.is_predicted(path.name)]
    plain = channels == 1 and not any(path.name.endswith(f"_0000{ENDING}") for path in files)
    return tuple(Case(name, group, None) for name, group in _grouped(folder, files, channels, plain=plain).items())


def load_case(case: Case, dataset: RawDataset | None) -> tuple[NDArray[np.float32], NDArray[np.int16] | None, Geometry]:
    """Read a case: image float32 (c z y x), labels int16 (z y x) or None, geometry of its first channel.

    `dataset` may be None for a case without labels. Raises `DataError` for unreadable files, channels or labels on
    different voxel grids, and label values that the data set does not declare or the case does not list as annotated.
    """
    volumes = [read_image(path) for path in case.images]
    for other in volumes[1:]:
        check_same_geometry(volumes[0], other)
    image = np.stack([volume.array for volume in volumes])
    if case.label is None:
        return image, None, volumes[0].geometry
    label = read_labels(case.label)
    check_same_geometry(volumes[0], label)
    if dataset is not None:
        values = set(np.unique(label.array).tolist())
        unknown = sorted(values - set(dataset.labels.values()))
        if unknown:
            shown = ", ".join(map(str, unknown[:10])) + (", …" if len(unknown) > 10 else "")
            declared = f"0 … {max(dataset.labels.values())} of {dataset.root / 'dataset.json'}"
            raise DataError(f"{case.label}: label values {shown}, expected {declared}; declare or renumber them")
        check_annotated(values, label.path, dataset.labels, dataset.annotated(case))
    return image, label.array, volumes[0].geometry


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}:{error.colno}: invalid JSON ({error.msg}); correct it there") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); save it again") from error


def declared_labels(source: Path) -> dict[str, int]:
    """Label names and values of a dataset.json; raises `DataError` where they cannot be used."""
    content = _read_json(source)
    return _labels(cast(dict[str, Any], content) if isinstance(content, dict) else {}, source)


def foreground_labels(labels: Mapping[str, int]) -> dict[str, int]:
    """The labels without background and 'ignore'."""
    return {name: value for name, value in labels.items() if name not in NO_OBJECT}


def annotated_labels(
    source: Path, labels: Mapping[str, int], cases: Collection[str], *, others: bool = False
) -> dict[str, frozenset[str]]:
    """Names of the labels looked for in each case of an annotated.json, which lists all of `cases` and no `others`.

    A case left out is refused, not taken for complete: that mistake would teach the network that there is nothing.
    Raises `DataError` for that, for content of another form, and for values that are no foreground label.
    """
    content = _read_json(source)
    if not isinstance(content, dict):
        raise DataError(f'{source}: expected an object of label values by case, like {{"case_01": [1, 2]}}')
    names = {value: name for name, value in foreground_labels(labels).items()}
    listed: dict[str, frozenset[str]] = {}
    for case, values in cast(dict[str, Any], content).items():
        if case not in cases and not others:
            raise DataError(f"{source}: no case '{case}'{nearest(case, cases)}; remove it or add its files")
        if not isinstance(values, list) or not values or any(type(v) is not int for v in cast(list[Any], values)):
            raise DataError(
                f"{source}: case '{case}' has {values!r}, expected the label values looked for, as in [1, 2]"
            )
        for value in cast(list[int], values):
            if value not in names:
                known = ", ".join(f"{v} {name}" for v, name in sorted(names.items()))
                raise DataError(f"{source}: case '{case}' lists {value}, which is no label ({known}); correct it there")
        listed[case] = frozenset(names[value] for value in cast(list[int], values))
    for case in cases:
        if case not in listed:
            raise DataError(
                f"{source}: case '{case}' is not listed; add the label values looked for in it, {sorted(names)} if it "
                f"is complete"
            )
    return listed


def check_annotated(values: Collection[int], path: Path, labels: Mapping[str, int], annotated: Collection[str]) -> None:
    """Raise `DataError` if a label map of `values` at `path` holds a label that is not among those looked for."""
    for name, value in foreground_labels(labels).items():
        if value in values and name not in annotated:
            case = path.name.removesuffix(ENDING)
            raise DataError(
                f"{path}: voxels of '{name}' ({value}), which {ANNOTATED} does not list for case '{case}'; "
                f"list {value} there or remove the voxels"
            )


def _channels(description: dict[str, Any], source: Path) -> tuple[str, ...]:
    given = description.get("channel_names", description.get("modality"))
    if not isinstance(given, dict) or not given:
        raise DataError(f'{source}: no channel_names; write for instance "channel_names": {{"0": "CT"}}')
    names = cast(dict[str, Any], given)
    expected = [str(index) for index in range(len(names))]
    if set(names) != set(expected) or not all(isinstance(name, str) for name in names.values()):
        raise DataError(
            f'{source}: channel_names has keys {sorted(names)}, expected {expected}, each with a name ("CT")'
        )
    return tuple(str(names[index]) for index in expected)


def _labels(description: dict[str, Any], source: Path) -> dict[str, int]:
    from maskmed_zoo.recipe.schema import check_labels

    given = description.get("labels")
    if not isinstance(given, dict) or not given:
        raise DataError(f'{source}: no labels; write for instance "labels": {{"background": 0, "liver": 1}}')
    labels = cast(dict[str, Any], given)
    for name, value in labels.items():
        if isinstance(value, list):
            raise DataError(f"{source}: label '{name}' is a region {value}, not supported; give each label one integer")
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(f"{source}: label '{name}' has value {value!r}, expected an integer as in \"{name}\": 1")
    try:
        check_labels(labels)
    except ValueError as error:
        raise DataError(f"{source}: {error}; renumber the labels there and in the label maps") from error
    return cast(dict[str, int], labels)


def _files(folder: Path) -> list[Path]:
    """Visible .nii.gz files, sorted."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected {ENDING} files there")
    return sorted(path for path in folder.glob(f"*{ENDING}") if not path.name.startswith("."))


def _grouped(folder: Path, files: Sequence[Path], channels: int, *, plain: bool) -> dict[str, tuple[Path, ...]]:
    """Identifier -> channel files in order, sorted by identifier, of the `files` in a folder."""
    found: dict[str, dict[int, Path]] = {}
    for path in files:
        match = _CHANNEL_FILE.fullmatch(path.name)
        if plain:
            found[path.name.removesuffix(ENDING)] = {0: path}
        elif match is None:
            raise DataError(f"{path}: no channel number; rename it to {path.name.removesuffix(ENDING)}_0000{ENDING}")
        elif int(match[2]) >= channels:
            raise DataError(
                f"{path}: channel {int(match[2])}, but {channels} declared; remove it or correct channel_names"
            )
        else:
            found.setdefault(match[1], {})[int(match[2])] = path
    if not found:
        raise DataError(f"{folder}: no images; expected files named NAME_0000{ENDING}")
    for name, group in found.items():
        for channel in range(channels):
            if channel not in group:
                raise DataError(
                    f"{folder}: case '{name}' lacks {name}_{channel:04d}{ENDING} (channel {channel}); add it"
                )
    return {name: tuple(found[name][channel] for channel in range(channels)) for name in sorted(found)}


Folds = list[tuple[list[str], list[str]]]


def _default_folds(names: list[str], root: Path) -> Folds:
    if len(names) < 2:
        raise DataError(
            f"{root}: {len(names)} case cannot be split into training and validation; at least 2 are needed"
        )
    count = min(5, len(names))
    order = np.arange(len(names))
    np.random.RandomState(12345).shuffle(order)  # the legacy generator is what scikit-learn's KFold draws from
    folds: Folds = []
    for part in np.array_split(order, count):  # the first len % count parts are one longer, as in KFold
        chosen = set(part.tolist())
        folds.append(([n for i, n in enumerate(names) if i not in chosen], [names[i] for i in sorted(chosen)]))
    return folds


def _read_folds(source: Path, known: dict[str, Case]) -> Folds:
    content = _read_json(source)
    folds: Folds = []
    try:
        folds = [([str(n) for n in fold["train"]], [str(n) for n in fold["val"]]) for fold in content]
    except (TypeError, KeyError) as error:
        raise DataError(f'{source}: expected a list of folds like {{"train": […], "val": […]}}') from error
    for index, (train, val) in enumerate(folds):
        where = f"{source}: fold {index}"
        if not train or not val:
            raise DataError(f"{where} has {len(train)} training and {len(val)} validation cases; each side needs one")
        for name in (*train, *val):
            if name not in known:
                raise DataError(f"{where} names unknown case '{name}'{nearest(name, known)} remove it or add its files")
        if overlap := sorted(set(train) & set(val)):
            raise DataError(
                f"{where} has '{overlap[0]}' in train and val ({len(overlap)} such); keep it in one of them"
            )
        for side in (train, val):
            if len(set(side)) != len(side):
                raise DataError(f"{where} names a case twice in one list; remove the repetition")
    return folds
