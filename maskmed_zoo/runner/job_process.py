"""The process of one job: `python -m maskmed_zoo.runner.job_process`, with the order as JSON on standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from maskmed_zoo.errors import ZooError
from maskmed_zoo.recipe.loader import parse_recipe
from maskmed_zoo.runner.evaluate import evaluate
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.train import train


def work(order: dict[str, Any]) -> None:
    """Train, or resume, and score."""
    recipe = parse_recipe(order["recipe"], "the order of a job")
    run = RunFolder(Path(order["out"]))
    run.evaluation_file.unlink(missing_ok=True)  # of fewer epochs, or cut off: else nobody would have called this
    train(
        recipe,
        data=order["data"],
        out=run.path,
        fold=order["fold"],
        device=order["device"],
        workers=order["workers"],
        resume=run.exists(),
        init=None if order["init"] is None else Path(order["init"]),
    )
    evaluate(run, data=order["data"], device=order["device"])


def main() -> int:
    """Do what standard input says; the last line on standard error says what went wrong."""
    try:
        work(json.load(sys.stdin))
    except (ZooError, KeyboardInterrupt) as error:
        sys.stderr.write(" ".join(str(error).split("\n")) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
