"""`export`: a run as a folder with a card, which others can check, load and publish: weights, or a whole pipeline.

The card names the data set and not where it lies, and no case.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from maskmed_zoo.build import model_of
from maskmed_zoo.errors import ArgumentError, CheckpointError, OutputError
from maskmed_zoo.evaluation.written import read_summary
from maskmed_zoo.export import formats
from maskmed_zoo.export.formats import ExportSource
from maskmed_zoo.files import is_file, read_json, sha256_of, usable, write_json, write_text
from maskmed_zoo.inference.postprocessing import Step, read_postprocessing
from maskmed_zoo.recipe import Recipe, dump_recipe
from maskmed_zoo.runner.run_folder import RunFolder, Which
from maskmed_zoo.version import __version__
from maskmed_zoo.weights.arriving import arriving, clear
from maskmed_zoo.weights.card import (
    CARD,
    FORMAT,
    POSTPROCESSING,
    README,
    RECIPE,
    WEIGHTS,
    FileFacts,
    check_exported,
    readme,
)

log = logging.getLogger(__name__)
SCORES = ("mean_dice", "mean_dice_over_labels", "test_time_augmentation", "overlap", "date")


def export(
    run: RunFolder,
    out: Path,
    *,
    license: str,
    which: Which = "last",
    format: str = formats.DEFAULT,
    fp16: bool = False,
) -> dict[str, Any]:
    """Write the weights `which` of a run with its recipe and card to `out`, which must be new; returns the card.

    `fp16` stores the weights of an ONNX graph in 16 bits. Raises `CheckpointError` for a run without whole weights of
    its own recipe, `OutputError` where `out` is there or cannot be written, and `ArgumentError` without a license, for
    a format that there is none of, and for a network that cannot be exported so.
    """
    if usable(out).exists():
        raise OutputError(f"{out}: exists already; give a new folder")
    if not license.strip():
        raise ArgumentError("the license is empty; name the one that weights and training data allow, or 'unknown'")
    form = formats.find(format)
    if fp16 and format not in formats.HALVED:
        raise ArgumentError(f"fp16: format '{format}' stores weights as they are; take {' or '.join(formats.HALVED)}")
    recipe, manifest = run.recipe(), run.manifest()
    model = model_of(recipe)
    sha256 = run.load_weights(model, which, recipe)  # whole, and of this recipe
    steps = _steps(run, sha256, recipe)
    with arriving(out) as hidden:
        clear(hidden)  # of an export that was killed
        form.write(ExportSource(run, which, recipe, model, steps, fp16), hidden)
        if steps:
            written = {"weights_sha256": sha256_of(hidden / WEIGHTS)}  # of earlier versions the header is another
            write_json(hidden / POSTPROCESSING, read_json(run.path / POSTPROCESSING) | written)
        write_text(hidden / RECIPE, dump_recipe(recipe))
        card: dict[str, Any] = {
            "format": FORMAT,
            "name": recipe.name,
            "recipe": recipe.name,
            "license": license.strip(),
            "channels": list(recipe.channels),
            "class_names": list(model.class_names or ()),
            "data": {name: manifest[name] for name in ("dataset", "fold", "seed")},
            "fingerprint": manifest["fingerprint"],
            "preprocessing": manifest["preprocessing"],
            "iterations": recipe.train.iterations,
            "weights": which,
            "metrics": _metrics(run, sha256),
            "versions": {"maskmed_zoo": __version__, "torch": torch.__version__},
        }
        write_text(hidden / README, readme(card, {path.name for path in hidden.iterdir()}))
        files = {path.name: FileFacts.of(path) for path in sorted(hidden.iterdir())}
        card["files"] = {name: {"size": fact.size, "sha256": fact.sha256} for name, fact in files.items()}
        write_json(hidden / CARD, card)
        check_exported(hidden)
    return card


def _steps(run: RunFolder, sha256: str, recipe: Recipe) -> tuple[Step, ...]:
    """What post-processing was chosen for these weights."""
    file = run.path / POSTPROCESSING
    if not is_file(file):
        return ()
    found = read_json(file, error=CheckpointError)
    if isinstance(found, dict) and found.get("weights_sha256") != sha256:
        log.warning("%s: chosen for other weights than are exported, so it is left out", file)
        return ()
    return read_postprocessing(file, sha256, recipe.labels.foreground).steps


def _metrics(run: RunFolder, sha256: str) -> dict[str, Any] | None:
    """The run's scores with these very weights, if it has any."""
    scores = read_summary(run.evaluation_file)
    if scores is None or scores.get("weights_sha256") != sha256:
        return None
    labels = {f"dice {name}": row["mean"] for name, row in scores["labels"].items()}
    means = {name: scores[name] for name in SCORES if name in scores}
    return means | labels | {"validation_cases": len(scores["cases"])}
