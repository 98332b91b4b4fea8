"""`explain`: what a run's queries are, which classes they answer for, and where they look (MaskMed Fig. 3-5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskmed_zoo.data.case import Case
from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.data.inputs import input_cases
from maskmed_zoo.data.sources import Data
from maskmed_zoo.errors import DataError, Failures, UserError, nearest
from maskmed_zoo.explain import VALIDATION_CASES
from maskmed_zoo.explain.case import aim_of, foreground_of, read_subject
from maskmed_zoo.explain.document import write_document
from maskmed_zoo.explain.places import Point
from maskmed_zoo.explain.view import Explained, look
from maskmed_zoo.files import UNFINISHED, make_folder, remove_abandoned
from maskmed_zoo.inference.nnunet import NNUNetPredictor
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.memory import within_memory
from maskmed_zoo.report.canvas import require_matplotlib
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.evaluate import validation_cases
from maskmed_zoo.runner.load import load
from maskmed_zoo.runner.manifest import now
from maskmed_zoo.runner.run_folder import RunFolder, Which


def explain(
    run: RunFolder,
    out: Path,
    images: Sequence[Path] = (),
    *,
    validation: int | None = None,
    data: Data | None = None,
    device: str | None = None,
    which: Which = "last",
    label: str | None = None,
    point: Point | None = None,
    display: Display | None = None,
) -> list[Path]:
    """Explain a run on image files or folders, or on its first `validation` validation cases; returns what it wrote.

    `data` is where the data sets lie now, if they have moved. Attention and sampling are of the window centred on
    `point` (z, y, x, voxels of the image in RAS order), or on `label`, or on the largest label predicted. Raises
    `UserError` for a label the run does not have, a point outside of an image, or without matplotlib; and one
    `DataError` for all cases that cannot be used, after the others are written.
    """
    display = display or Display()
    require_matplotlib()
    if images and (validation is not None or data is not None):
        raise UserError("explain: give either images or validation cases (--validation, --data)")
    if validation is not None and validation < 1:
        raise UserError(f"explain: expected at least 1 validation case, got {validation}")
    predictor = load(run, which=which, device=device)
    if isinstance(predictor, NNUNetPredictor):
        raise UserError(f"{run.path}: a model that nnU-Net trained, which predicts but is not explained; give a run")
    names = predictor.model.class_names or ()
    if label is not None and label not in names:
        raise UserError(f"the run has no label '{label}'{nearest(label, names)} (labels: {', '.join(names)})")
    cases = _cases(predictor, run, images, validation or VALIDATION_CASES, data)
    make_folder(out)
    remove_abandoned(out, f"{UNFINISHED}*")
    explained: list[Explained] = []
    failures = Failures()
    with display.task("looking into cases") as progress:
        for done, (name, (case, dataset)) in enumerate(cases.items(), start=1):
            with failures.kept(), within_memory(f"case '{name}'"):
                subject = read_subject(predictor, name, case, dataset)
                aim = aim_of(subject, None if label is None else names.index(label), point, names)
                foreground = look(predictor, subject, foreground_of(subject))
                explained.append(Explained(name, foreground, chosen=look(predictor, subject, aim)))
            progress(done, len(cases))
    if not explained:
        failures.tell(len(cases), f"nothing is written to {out}")
    facts = {
        "recipe": predictor.recipe.name,
        "head": predictor.recipe.model.head.model_dump()["kind"],
        "neck": predictor.recipe.model.neck.model_dump()["kind"],
        "weights": which,
        "weights_sha256": predictor.weights_sha256,
        "date": now(),
        "class_names": list(names),
        "spacing": list(predictor.recipe.data.spacing),
        "window_size": list(predictor.recipe.data.patch_size),
    }
    written = write_document(out, facts, explained, display)
    failures.tell(len(cases), f"the others are in {out}")
    return written


def _cases(
    predictor: Predictor, run: RunFolder, images: Sequence[Path], validation: int, data: Data | None
) -> dict[str, tuple[Case, RawDataset | None]]:
    channels = predictor.channels
    if not images:
        found = validation_cases(run.manifest(), data, channels)
        return {name: found[name] for name in list(found)[:validation]}
    cases = input_cases(images, channels)
    by_name: dict[str, tuple[Case, RawDataset | None]] = {case.identifier: (case, None) for case in cases}
    if len(by_name) != len(cases):
        raise DataError("explain: two images have the same name; explain them one by one")
    return by_name
