"""Label maps of image files: which files are written where, which are finished, and what stays as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from maskmed_zoo import files
from maskmed_zoo.data.case import Case, load_image
from maskmed_zoo.data.formats import DEFAULT, ending_of, written_endings
from maskmed_zoo.data.inputs import input_cases
from maskmed_zoo.data.predicted import PredictedFolder, files_of
from maskmed_zoo.errors import ArgumentError, DataError, Failures
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.inference.write import check_targets, clear_abandoned, is_finished, write_prediction
from maskmed_zoo.memory import within_memory


def predict_files(
    predictor: Predictor,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Segment image files or folders of them; returns the label maps written, `out/NAME.nii.gz` each.

    `out` may name the one label map to write if there is one input file. Where the recipe separates instances,
    `NAME_instances.nii.gz` and `NAME_instances.json` lie beside it. Cases finished by the same weights are skipped
    unless `overwrite`, which also replaces what other weights made. `progress(done, total)` counts all cases.

    Raises one `DataError` for all inputs that cannot be used, after the others are finished; and, before anything is
    predicted, where an output would be an input, or label maps are in the way that other weights made, or something
    unknown, which is never replaced. Raises `OutputError` where nothing can be written; what is finished stays.
    """
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    cases = input_cases([files.usable(Path(path), DataError) for path in given], predictor.channels)
    if not cases:
        raise ArgumentError("no inputs: give image files, or folders of them")
    targets = _targets(files.usable(Path(out)), cases)
    weights, has_instances = predictor.weights_sha256, predictor.recipe.data.instances is not None
    _refuse_clashes(cases, targets, with_instances=has_instances)
    check_targets(targets, weights, with_instances=has_instances, overwrite=overwrite)
    written: list[Path] = []
    failures = Failures()
    records = {folder: PredictedFolder(folder) for folder in {target.parent for target in targets}}
    for folder in records:
        clear_abandoned(folder)

    def is_done(record: PredictedFolder, target: Path) -> bool:
        return not overwrite and is_finished(record, target, weights, with_instances=has_instances)

    done = {target for target in targets if is_done(records[target.parent], target)}
    for index, (case, target) in enumerate(zip(cases, targets, strict=True)):
        # Another process may have been here since.
        if target not in done and not is_done(PredictedFolder(target.parent), target):
            with failures.kept(), within_memory(f"case '{case.identifier}'"):
                prediction = predictor.segment(*load_image(case))  # the image is gone before the labels are written
                write_prediction(target, prediction, predictor.labels, weights, overwrite=overwrite)
                written.append(target)
        if progress is not None:
            progress(index + 1, len(cases))
    failures.tell(len(cases), f"the others are in {targets[0].parent}")
    return written


def _targets(out: Path, cases: Sequence[Case]) -> list[Path]:
    """The label map to write for each case: `out` itself for one case, or in the folder `out`."""
    out = out.resolve() if ".." in out.parts else out  # below a folder that is not there yet, no path is seen as it is
    is_folder, endings = out.is_dir(), written_endings()
    single = ending_of(out, endings) is not None and not is_folder
    if ending_of(out) and not single and not is_folder:
        raise DataError(
            f"{out}: label maps are written as {' or '.join(endings)}; give such a name "
            f"({out.name.removesuffix(ending_of(out) or '')}{DEFAULT}), or a folder"
        )
    if single and len(cases) != 1:
        raise DataError(f"{out}: one output file for {len(cases)} inputs; give a folder")
    if not single and out.exists() and not is_folder:
        raise DataError(f"{out}: is a file; give a folder, or a name ending in {DEFAULT} for one input")
    return [out] if single else [out / f"{case.identifier}{DEFAULT}" for case in cases]


def _refuse_clashes(cases: Sequence[Case], targets: Sequence[Path], *, with_instances: bool) -> None:
    """Raise `DataError` if two cases share a file to write, or one is an image to read, under whatever name."""
    outputs = [path for target in targets for path in files_of(target, with_instances=with_instances)]
    images = {_identity(path) for case in cases for path in case.images}
    for path in outputs:
        if path.exists() and _identity(path) in images:
            raise DataError(f"{path}: is an input, a prediction never replaces one; give another output")
    twice = next((path for path, count in Counter(outputs).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{twice}: two inputs would be written to the same file; predict them into different folders")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
