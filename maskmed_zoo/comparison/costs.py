"""What a method costs, as far as the folders of its runs tell."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from maskmed_zoo.build import network_facts
from maskmed_zoo.comparison.methods import Run
from maskmed_zoo.errors import UserError
from maskmed_zoo.runner.metrics_file import read_rows
from maskmed_zoo.runner.resources import read_resources
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.study_folder import runs_at

COSTS = {
    "parameters": "numbers in the network",
    "macs": "multiply-accumulate operations of one forward pass of one patch",
    "seconds_per_case": "wall-clock seconds from an image's file to its label map's, median over cases, then over runs",
    "peak_memory_bytes": "of the process that trained, largest over runs; null where these are of different memory",
    "memory": "of peak_memory_bytes: 'cuda', allocated for tensors on the card, or 'resident', main memory",
    "training_seconds": "wall-clock seconds of all epochs, of all folds of a study together; mean over runs",
}


def costs_of(runs: Sequence[Run]) -> dict[str, Any]:
    """Keys `COSTS`; None where a run does not tell, or is none of this package's."""
    networks: dict[str, dict[str, Any]] = {}
    found = [_of_run(run, networks) for run in runs]
    together = {"parameters": max, "macs": max, "seconds_per_case": median, "peak_memory_bytes": max}
    costs: dict[str, Any] = {}
    for key in COSTS:
        if key == "memory":
            continue
        values = [value for one in found if (value := one.get(key)) is not None]
        costs[key] = together.get(key, fmean)(values) if len(values) == len(runs) else None
    kinds = {one.get("memory") for one in found}
    costs["memory"] = kinds.pop() if len(kinds) == 1 else None
    if costs["memory"] is None:
        costs["peak_memory_bytes"] = None
    return costs


def _of_run(run: Run, networks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of one run; `networks` holds the facts of those that were counted before, which runs of several seeds share."""
    seconds = run.facts.get("seconds_per_case")
    found: dict[str, Any] = {"seconds_per_case": seconds if isinstance(seconds, int | float) else None}
    if run.folder is None:
        return found
    folders = [RunFolder(path) for path in runs_at(run.folder)]
    try:
        recipe = folders[0].recipe()
        key = recipe.model_copy(update={"train": None}).model_dump_json(warnings=False)
        network = networks[key] if key in networks else networks.setdefault(key, network_facts(recipe))
    except UserError:  # of a plug-in that is not installed here, or of another version
        return found
    found |= {"parameters": network["total_parameters"], "macs": network["macs"]}
    epochs = [read_rows(folder.metrics_file, recipe.train.iterations_per_epoch) for folder in folders]
    whole = [folder.whole(recipe.train.epochs) for folder in folders]
    if [len(rows) for rows in epochs] == whole and all(row.get("seconds") for rows in epochs for row in rows):
        found["training_seconds"] = sum(float(row["seconds"]) for rows in epochs for row in rows)
    return found | _together([read_resources(folder) for folder in folders])


def _together(resources: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The largest of the folds of a study; empty where one is not known, or they are of different memory."""
    largest = [one.get("peak_memory_bytes") for one in resources]
    kinds = {one.get("memory") for one in resources}
    if None in largest or len(kinds) > 1:
        return {}
    return {"peak_memory_bytes": max(size for size in largest if size is not None), "memory": kinds.pop()}
