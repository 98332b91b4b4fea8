"""`predict` for a run or a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskmed_zoo.inference.predict_files import predict_files
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.load import load
from maskmed_zoo.runner.run_folder import RunFolder, Which


def predict(
    run: RunFolder,
    inputs: Sequence[Path],
    out: Path,
    *,
    device: str | None = None,
    overwrite: bool = False,
    which: Which = "last",
    mirroring: bool | None = None,
    display: Display | None = None,
) -> list[Path]:
    """`predict_files` with the weights `which` of a run, or of all folds of a study; returns the label maps written."""
    display = display or Display()
    predictor, cases = load(run, which=which, mirroring=mirroring, device=device), 0
    with display.task("predicting") as progress:

        def count(done: int, total: int) -> None:
            nonlocal cases
            cases = total
            progress(done, total)

        written = predict_files(predictor, inputs, out, overwrite=overwrite, progress=count)
    if len(written) < cases:
        display.say(f"{cases - len(written)} finished before and skipped; --overwrite predicts them again")
    return written
