"""Pictures of an evaluation: its worst, median and best case, and what probabilities are worth.

```
evaluation.png     the cases by mean Dice; see `report.overview`
reliability.png    where metrics took probabilities; see `report.reliability`
```
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.case import image_files
from maskmed_zoo.data.formats import ending_of, read_image, read_labels, stem_of
from maskmed_zoo.data.image import Volume, is_same_grid
from maskmed_zoo.data.predicted import PredictedFolder, renumbered
from maskmed_zoo.errors import DataError, UserError
from maskmed_zoo.evaluation.calibration import curves
from maskmed_zoo.evaluation.folders import evaluate_folders, known_labels
from maskmed_zoo.files import make_folder, usable
from maskmed_zoo.labels import Labels
from maskmed_zoo.report.canvas import require_matplotlib
from maskmed_zoo.report.overview import ShownCase, overview_figure
from maskmed_zoo.report.reliability import reliability_figure
from maskmed_zoo.settings import Spacing3

log = logging.getLogger(__name__)
OVERVIEW, RELIABILITY = "evaluation.png", "reliability.png"
Maps = tuple[NDArray[Any] | None, NDArray[Any], NDArray[Any], Spacing3]
"""Image or None, reference and prediction (z y x), and spacing (z, y, x) in mm."""


def can_draw() -> bool:
    """Whether matplotlib is there."""
    try:
        require_matplotlib()
    except UserError:
        return False
    return True


def clear(folder: Path) -> None:
    """Take away the pictures of an earlier evaluation."""
    for name in (OVERVIEW, RELIABILITY):
        (folder / name).unlink(missing_ok=True)


def draw(folder: Path, summary: Mapping[str, Any], labels: Labels, maps_of: Callable[[str], Maps]) -> None:
    """The pictures of a summary of Dice scores; `maps_of` reads a case by its name, one at a time.

    Raises what `maps_of` raises, `UserError` without matplotlib and `OutputError`.
    """
    clear(folder)
    chosen = extremes(summary)
    if chosen:
        overview_figure(folder / OVERVIEW, "Cases by mean Dice", _shown(summary, chosen, labels, maps_of), labels)
    if "calibration" in summary:
        reliability_figure(folder / RELIABILITY, curves(summary["calibration"]))


def score_folders(
    pred: str | Path,
    ref: str | Path,
    labels: Mapping[str, int] | None = None,
    *,
    pictures: str | Path | None = None,
    **how: Any,
) -> dict[str, Any]:
    """What `evaluate_folders` makes of its arguments; its pictures go into the folder `pictures`, if there is one.

    Raises what that does, `UserError` without matplotlib, and `OutputError`.
    """
    if pictures is None:
        return evaluate_folders(pred, ref, labels, **how)
    require_matplotlib()
    if usable(Path(pictures)).exists():
        make_folder(Path(pictures))  # refuses what is no folder, before anything is scored
    summary = evaluate_folders(pred, ref, labels, **how)
    draw_folders(Path(pictures), Path(pred), Path(ref), labels, summary)
    return summary


def draw_folders(
    folder: Path, pred: Path, ref: Path, labels: Mapping[str, int] | None, summary: Mapping[str, Any]
) -> None:
    """The pictures of what `evaluate_folders` made of the same arguments.

    Images are those of `imagesTs` beside a folder of references called `labelsTs`, and the like; without them label
    maps are drawn alone, and so are they where an image lies on another grid or cannot be read, which is logged.
    """
    known, record = known_labels(ref, labels), PredictedFolder(pred)
    names = [int(name.removeprefix("label_")) for name in summary["labels"]] if known is None else []
    used = known or Labels.found(names)
    files = {stem_of(path): path for path in image_files(ref)}

    def maps_of(identifier: str) -> Maps:
        reference = read_labels(files[identifier])
        path = pred / reference.path.name
        own = record.labels_of(path.name) if known else None
        predicted = renumbered(read_labels(path).array, own, used) if path.is_file() else np.zeros_like(reference.array)
        return _image(reference), reference.array, predicted, reference.spacing

    draw(folder, summary, used, maps_of)


def extremes(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The worst, the median and the best of the cases that have a mean, each case once, as the worst if it is all.

    Of two in the middle the worse one is the median.
    """
    scored = [case for case in summary["cases"] if case["mean"] is not None]
    scored.sort(key=lambda case: (case["mean"], case["case"]))
    places = {"best": -1, "median": (len(scored) - 1) // 2, "worst": 0}
    by_name = {scored[place]["case"]: heading for heading, place in places.items()} if scored else {}
    return {heading: case for case in scored if (heading := by_name.get(case["case"]))}


def _shown(
    summary: Mapping[str, Any],
    chosen: Mapping[str, Mapping[str, Any]],
    labels: Labels,
    maps_of: Callable[[str], Maps],
) -> Generator[ShownCase]:
    for heading, case in chosen.items():
        image, reference, prediction, spacing = maps_of(case["case"])
        without = ("no prediction",) if case["case"] in summary.get("unpredicted", ()) else ()
        lines = (case["case"], f"mean Dice {case['mean']:.4f}", *without)
        unannotated = [labels[name] for name in case["unannotated"]]
        yield ShownCase(heading, lines, image, reference, prediction, spacing, labels.ignore, unannotated)


def _image(reference: Volume) -> NDArray[np.float32] | None:
    """The first channel of the image of a reference, by the names of nnU-Net's folders."""
    folder, stem, ending = reference.path.parent, stem_of(reference.path), ending_of(reference.path)
    path = folder.with_name(folder.name.replace("labels", "images", 1)) / f"{stem}_0000{ending}"
    if not folder.name.startswith("labels") or not path.is_file():
        return None
    try:
        image = read_image(path)
    except DataError as error:
        log.warning("%s; its case is drawn without an image", error)
        return None
    return image.array if is_same_grid(image.geometry, reference.geometry) else None
