"""`postprocess`: choose post-processing on the label maps that `evaluate` left of validation cases, of all folds."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

from maskmed_zoo.data.sources import Data
from maskmed_zoo.errors import CheckpointError, DataError, Failures
from maskmed_zoo.files import is_file, sha256_of, write_json
from maskmed_zoo.inference.predictor import together
from maskmed_zoo.memory import within_memory
from maskmed_zoo.postprocessing.counts import CaseCounts
from maskmed_zoo.postprocessing.document import Document, document_of, remarks
from maskmed_zoo.postprocessing.place import places_of
from maskmed_zoo.postprocessing.recomputed import Recomputed
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.manifest import now
from maskmed_zoo.runner.run_folder import RunFolder, Which
from maskmed_zoo.runner.study_folder import folds_in
from maskmed_zoo.runner.study_members import finished_folds
from maskmed_zoo.weights.card import POSTPROCESSING


def postprocess(
    source: RunFolder,
    *,
    data: Data | None = None,
    which: Which = "last",
    thresholds: bool = False,
    device: str | None = None,
    dry_run: bool = False,
    display: Display | None = None,
) -> Document:
    """Choose, and unless `dry_run` write `postprocessing.json` into the run or the study, where `predict` finds it.

    Read are the label maps that `evaluate` made with the weights `which`, and the references. With `thresholds` the
    probabilities of all cases are computed again, on `device`, and thresholds of labels are tried too; else nothing is
    predicted. `data` is where the data sets lie now, if they have moved. Raises `CheckpointError` for a folder that is
    no run, and `DataError` for all cases that cannot be used, or that two folds validate; the file is then left as it
    was.
    """
    display = display or Display()
    runs = [*finished_folds(source.path, display.say).values()] if folds_in(source.path) else [source]
    labels, sums = runs[0].recipe(with_loss=False).labels, [_weights_of(run, which) for run in runs]
    places = [place for run, sha256 in zip(runs, sums, strict=True) for place in places_of(run, data, which, sha256)]
    twice = [name for name, count in Counter(place.name for place in places).items() if count > 1]
    if twice:
        raise DataError(f"{source.path}: folds share the validation case '{twice[0]}', which would count twice")
    cases, failures = list[CaseCounts](), Failures()
    with ExitStack() as stack:
        again = stack.enter_context(Recomputed.in_temporary_folder(labels, device)) if thresholds else None
        with display.task("counting parts") as progress:
            for done, place in enumerate(places, start=1):
                with failures.kept(), within_memory(f"case '{place.name}'"):
                    cases.append(CaseCounts(place.name, place.patient, place.read(labels).counts(labels)))
                progress(done, len(places))
        failures.tell(len(places), "nothing is chosen before all can be used")
        if again:
            with display.task("computing probabilities") as progress:
                for done, place in enumerate(places, start=1):
                    with within_memory(f"case '{place.name}'"):
                        cases[done - 1] = again.case(place)
                    progress(done, len(places))
        if again and again.differing:
            display.say(
                f"{len(again.differing)} of {len(places)} cases: up to {100 * max(again.differing.values()):.1g} % of "
                f"the voxels with a label come out otherwise than in their label maps; thresholds leave them alone"
            )
        if again:
            display.say("choosing; parts are counted once more where thresholds are kept")
        document = document_of(cases, list(labels.foreground), weights=which, sha256=together(sums), date=now())
    for remark in remarks(document, is_mean=len(runs) > 1):
        display.say(remark)
    if not dry_run:
        write_json(source.path / POSTPROCESSING, document.model_dump(mode="json"))
    return document


def _weights_of(run: RunFolder, which: Which) -> str:
    path = run.weights_file(which)
    if not is_file(path):
        raise CheckpointError(f"{path}: is missing; post-processing is chosen for weights, so train the run first")
    return sha256_of(path)
