"""How a training starts, from the weights of others, and how it goes on for longer than planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.files import sha256_of, write_json
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.runner.manifest import now
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.trainer import Trainer
from maskmed_zoo.weights.load import start_from
from maskmed_zoo.weights.source import weights_in


def load_init(trainer: Trainer, source: Path, sha256: str | None = None) -> dict[str, Any]:
    """Fill the trainer's network from a source, say what fitted, and return the record of it for the manifest.

    Raises `CheckpointError` as `start_from` does, and if the weights are others than those of this checksum, with which
    the run began.
    """
    file = weights_in(source)
    report = start_from(trainer.model, source)
    found = sha256_of(file)
    if sha256 not in (None, found):
        raise CheckpointError(
            f"{file}: has changed since the run began from it, which has finished no epoch; train into a new folder"
        )
    first, *rest = report.summary()
    for line in (f"starting from {file}: {first}", *rest):
        trainer.say(line)
    _say_frozen(trainer, report.missing)
    return {"source": str(source.absolute()), "file": str(file.absolute()), "sha256": found, "report": asdict(report)}


def begin_fresh(trainer: Trainer) -> None:
    """Say what is frozen of a network that begins without weights of others."""
    has_weights = getattr(trainer.recipe.model.encoder, "weights", None) is not None
    names = (name for name, _ in trainer.model.named_parameters())
    _say_frozen(trainer, (name for name in names if not (has_weights and name.startswith("encoder."))))


def _say_frozen(trainer: Trainer, fresh: Iterable[str]) -> None:
    """Say which frozen parts have weights that are drawn at random, given the names of all these."""
    begun = {name.partition(".")[0] for name in fresh}
    parts = [part for part in trainer.model.frozen if part in begun]
    if parts:
        trainer.say(f"train.freeze: {' and '.join(parts)} will not be trained, though weights in it are fresh")


def check_init(run: RunFolder, manifest: Mapping[str, Any], init: Path | None) -> None:
    """Raise `CheckpointError` unless a run that is resumed began from `init`, or none is given."""
    known = manifest.get("init")
    if init is None or (known is not None and known["source"] == str(init.absolute())):
        return
    began = "fresh weights" if known is None else known["source"]
    raise CheckpointError(
        f"{run.path}: the run began from {began}, and goes on from its own state; leave out --init (init=), or train "
        f"into a new folder"
    )


def lengthened(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe with so many epochs; `RecipeError` for a number that is none of epochs."""
    return load_recipe(recipe, {"train.epochs": epochs})


def check_extension(run: RunFolder, epochs: int) -> None:
    """Raise `CheckpointError` unless the run can be lengthened to so many epochs, or has been."""
    if not run.exists():
        raise CheckpointError(f"{run.path}: no run to lengthen, no recipe.yaml here; --extend-to goes with --resume")
    planned, end = run.recipe().train.epochs, run.early_end()
    if epochs > planned and end is not None:
        raise CheckpointError(
            f"{run.path}: {end.in_words()}; a longer run would end there too, so leave out --extend-to (extend_to=), "
            f"or begin another one from its weights with --init '{run.path}'"
        )
    if epochs < planned:
        raise CheckpointError(
            f"{run.path}: the run has {planned} epochs and cannot be shortened to {epochs}; give --extend-to more"
        )


def record_extension(run: RunFolder, planned: int, recipe: Recipe) -> None:
    """Write down that a run of `planned` epochs is as long from now on as `recipe` says."""
    manifest = run.manifest()
    before: list[dict[str, Any]] = manifest.get("extended", [])
    record = {"from": planned, "to": recipe.train.epochs, "when": now()}
    # First the manifest: killed in between, the same is asked for once more and told once.
    kept = [entry for entry in before if (entry["from"], entry["to"]) != (record["from"], record["to"])]
    write_json(run.manifest_file, manifest | {"extended": [*kept, record]})
    run.write_recipe(recipe)
