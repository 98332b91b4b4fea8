"""`predict` for runs and studies; of n processes, each does every n-th case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskmed_zoo import distributed
from maskmed_zoo.errors import Failures
from maskmed_zoo.inference.predict_files import Predicting
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.load import Overrides, Source, load_together
from maskmed_zoo.runner.run_folder import Which


def predict(
    run: Source | Sequence[Source],
    inputs: Sequence[Path],
    out: Path,
    *,
    device: str | None = None,
    overwrite: bool = False,
    which: Which = "last",
    postprocess: bool = True,
    overrides: Overrides = (),
    probabilities: bool = False,
    npz: bool = False,
    part: tuple[int, int] = (1, 1),
    display: Display | None = None,
) -> list[Path]:
    """`Predictor.files` with the weights `which` of a run, of all folds of a study, or of several; returns the same.

    With `postprocess` label maps get what was chosen for a run or a study, see `maskmed_zoo.postprocessing`.
    Of several processes that `torchrun` has started, all return the same label maps, or raise the same error.
    """
    distributed.join()
    display = display or Display(quiet=not distributed.is_first())
    runs = [*run] if isinstance(run, Sequence) and not isinstance(run, str) else [run]
    predictor = load_together(runs, which=which, device=device, postprocess=postprocess, overrides=overrides)
    cases = Predicting(predictor, inputs, out, overwrite=overwrite, probabilities=probabilities, npz=npz, part=part)
    distributed.wait()  # until all have checked what is there
    total, size = len(cases.jobs), distributed.size()
    with display.task("predicting") as progress:
        work = cases.run(lambda done, _: progress(min(done * size, total), total), rank=distributed.rank(), size=size)
    written, failures = work.written, work.failures
    if size > 1:
        parts, failures = distributed.gathered((written, work.failures)), Failures()
        failures.take(part[1] for part in parts)
        made = {path for part in parts for path in part[0]}
        written = [job.target for job in cases.jobs if job.target in made]
    failures.tell(total, cases.others)
    if len(written) < total:
        display.say(f"{total - len(written)} finished before and skipped; --overwrite predicts them again")
    return written
