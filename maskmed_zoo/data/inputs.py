"""The images to predict: files and folders, as they are named on a command line, to cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskmed_zoo.data.case import Case, grouped, image_files
from maskmed_zoo.data.formats import ending_of, formats, stem_of
from maskmed_zoo.data.predicted import PredictedFolder
from maskmed_zoo.errors import DataError
from maskmed_zoo.files import is_file, is_folder, is_there


def input_cases(inputs: Sequence[Path], channels: Sequence[str]) -> list[Case]:
    """Cases in folders, and cases made of the files given: `NAME_0000, NAME_0001, …`, or plain names."""
    cases: list[Case] = []
    files: list[tuple[Path, str, int]] = []
    for path in inputs:
        if is_folder(path):
            cases += find_cases(path, len(channels))
        elif not is_file(path):
            what = "is no plain file" if is_there(path) else "no such file or folder"
            raise DataError(f"{path}: {what}; give images or folders of them")
        elif ending_of(path) is None:
            known = " or ".join(sorted(formats(), key=len))
            raise DataError(f"{path}: expected a {known} file, or a folder of them; convert it to NIfTI")
        else:
            files.append((path, *_channel_of(path)))
    firsts = {name for _, name, channel in files if channel == 0}
    found: dict[str, dict[int, Path]] = {}
    for path, stem, number in files:
        # With one channel, a number without a partner 0000 is part of the name, as in visit_2020.
        name, channel = (stem, number) if number >= 0 and (len(channels) > 1 or stem in firsts) else (stem_of(path), 0)
        known = found.setdefault(name, {})
        if channel in known:
            raise DataError(f"{path}: '{name}' is there twice, also as {known[channel]}; predict them one by one")
        known[channel] = path
    for name, known in found.items():
        if sorted(known) != list(range(len(channels))):
            raise DataError(
                f"{next(iter(known.values())).parent}: case '{name}' has {len(known)} channel files "
                f"({', '.join(f'_{c:04d}' for c in sorted(known))}), the model takes {len(channels)} "
                f"({', '.join(channels)}), numbered from _0000"
            )
    return cases + [Case(name, tuple(known[c] for c in sorted(known)), None) for name, known in found.items()]


def _channel_of(path: Path) -> tuple[str, int]:
    """Name and channel of `NAME_0001.nii.gz`; channel -1 where there is no number."""
    stem, _, number = stem_of(path).rpartition("_")
    return (stem, int(number)) if stem and len(number) == 4 and number.isdecimal() else (stem_of(path), -1)


def find_cases(folder: str | Path, channels: int) -> tuple[Case, ...]:
    """Cases without labels in a folder of `NAME_0000.nii.gz, NAME_0001.nii.gz, …`, sorted by identifier.

    Files may have the ending of any format that is read. With one channel, they may also be called plainly
    `NAME.nii.gz`: so they are read if no name ends in `_0000`.
    What `predict` wrote into the folder is left out. Raises `DataError` for a missing or empty folder, missing channel
    files, or more channels than the model has.
    """
    folder = Path(folder)
    record = PredictedFolder(folder)
    files = [path for path in image_files(folder, tuple(formats())) if not record.is_predicted(path.name)]
    plain = channels == 1 and not any(stem_of(path).endswith("_0000") for path in files)
    changed = [path for path in files if record.is_listed(path.name)]
    if plain and changed:
        raise DataError(
            f"{changed[0]}: was predicted here and changed since; move it away, or name the images one by one"
        )
    files = [path for path in files if path not in changed]
    return tuple(Case(name, group, None) for name, group in grouped(folder, files, channels, plain=plain).items())
