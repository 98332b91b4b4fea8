"""`plan`: from a data set to a whole recipe that trains on it as it is."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.data.fingerprint import DatasetFingerprint, fingerprint_dataset
from maskmed_zoo.data.normalize import schemes
from maskmed_zoo.files import reading_threads
from maskmed_zoo.memory import within_memory
from maskmed_zoo.planning.budget import Budget, budget_of, shown, size_of
from maskmed_zoo.planning.choose import choose
from maskmed_zoo.planning.grid import grid_of
from maskmed_zoo.planning.reasons import AXES, SMALL, reasons
from maskmed_zoo.planning.text import commented
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.recipe.own_copy import name_of
from maskmed_zoo.runner.display import Display
from maskmed_zoo.version import __version__

BASE = "maskmed_amos"
"""The recipe of the paper's network: whose neck, head, loss and schedule a plan has unless another is named."""


@dataclass(frozen=True)
class Plan:
    """A planned `recipe`, its YAML `text` with the comments, those `comments` by path, and `bytes` of a step.

    `bytes` is an estimate for the precision that this machine trains in.
    """

    recipe: Recipe
    text: str
    comments: dict[str, str]
    bytes: int

    def __str__(self) -> str:
        return self.text


@within_memory("planning")
def plan(
    data: str | Path,
    *,
    recipe: str | Path | Recipe = BASE,
    memory: str | None = None,
    file: str = "mine.yaml",
    display: Display | None = None,
) -> Plan:
    """See `maskmed_zoo.plan`; `file` is what the text will be called."""
    display = display or Display()
    if memory is not None:
        size_of(memory)  # before anything is read
    origin = load_recipe(recipe)
    dataset = open_dataset(data)
    for remark in dataset.remarks:
        display.say(remark)
    with display.task(f"measuring cases of {dataset.name}") as progress:
        fingerprint = fingerprint_dataset(dataset, workers=reading_threads(), progress=progress)
    budget = budget_of(memory, origin.train.amp)
    display.say(f"planning for {shown(budget.bytes)} of memory ({budget.origin})")
    stated = {"name": name_of(dataset.name), "data.channels": [*dataset.channels], "data.labels": dict(dataset.labels)}
    found = plan_of(fingerprint, load_recipe(origin, stated | {"data.mirror_axes": []}), budget)
    if found.bytes > budget.bytes:
        display.say(
            f"nnU-Net's measure, which decides for its own networks, counts on 16-bit activations: here a step will "
            f"need about {shown(found.bytes)}; give a smaller --memory where that is too much"
        )
    command = f"{shlex.quote(file)} --data {shlex.quote(str(data))} --out runs/{found.recipe.name}"
    header = _header(command, origin, budget, len(fingerprint.cases))
    return Plan(found.recipe, commented(found.recipe, header, found.comments), found.comments, found.bytes)


def plan_of(fingerprint: DatasetFingerprint, base: Recipe, budget: Budget) -> Plan:
    """The plan for a fingerprint and a recipe that states channels and labels; its text has no header."""
    grid = grid_of(fingerprint.spacings, fingerprint.shapes_after_crop)
    chosen = schemes("auto", base.channels)
    settings = {
        "data.spacing": [float(f"{mm:.7g}") for mm in grid.spacing],  # the digits that a 32-bit header holds
        "data.normalization": list(chosen),
        "data.use_mask_for_norm": "zscore" in chosen and fingerprint.median_relative_size < SMALL,
        "data.mirror_axes": [axis for axis in AXES if axis != "x" or not base.labels.pairs],
    }
    choice = choose(load_recipe(base, settings), grid, budget)
    comments = reasons(choice, grid, budget, fingerprint)
    return Plan(choice.recipe, commented(choice.recipe, "", comments), comments, choice.bytes)


def _header(command: str, base: Recipe, budget: Budget, cases: int) -> str:
    return "\n".join(
        (
            f"Planned by maskmed-zoo {__version__} for {cases} cases and {shown(budget.bytes)} of memory "
            f"({budget.origin}).",
            "",
            f"  maskmed-zoo train {command}",
            "",
            f"Neck, head, loss and schedule are those of {base.name}; a comment says why a number is what it is.",
        )
    )
