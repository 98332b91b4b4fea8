"""Plans, data set descriptions and folders of results that nnU-Net writes."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from maskmed_zoo.recipe.nnunet_plan import read_configuration, recipe_of_plan
from maskmed_zoo.runner.nnunet_folder import Trained, load_trained
from tests.fuzz.harness import GIVEN, Target
from tests.fuzz.mutate import json_bytes, mutated_tree
from tests.interop.plans import DATASET, configuration
from tests.interop.results import plans, random_weights, write_results


def _plans(folder: Path) -> dict[str, Any]:
    del folder
    whole = json.loads(json.dumps(configuration()))
    return {"configurations": {"3d_fullres": whole, "3d_small": {"inherits_from": "3d_fullres", "batch_size": 4}}}


def _read_plans(original: dict[str, Any], random: Random, folder: Path) -> None:
    path = folder / GIVEN / "nnUNetPlans.json"
    path.write_bytes(json_bytes(random, original))
    found = read_configuration(path, random.choice(("3d_fullres", "3d_small")))
    dataset = mutated_tree(random, DATASET) if random.random() < 0.5 else DATASET
    recipe_of_plan("maskmed_amos", found, dataset=dataset, twin=random.random() < 0.5)


def _results(folder: Path) -> tuple[dict[str, Any], Path]:
    """A whole plan, and the folder of a fold trained with it."""
    whole = plans()
    return whole, write_results(folder, whole, {"0": random_weights(whole)}) / "fold_0"


def _predictor(original: tuple[dict[str, Any], Path], random: Random, folder: Path) -> None:
    whole, fold = original
    model = folder / GIVEN
    (model / fold.name).symlink_to(fold, target_is_directory=True)
    (model / "plans.json").write_bytes(json_bytes(random, whole))
    dataset = json_bytes(random, DATASET) if random.random() < 0.3 else json.dumps(DATASET).encode()
    (model / "dataset.json").write_bytes(dataset)
    load_trained(Trained(model), device="cpu")


NNUNET = (
    Target("nnUNetPlans.json", 2000, _plans, _read_plans),
    Target("nnU-Net's results", 2000, _results, _predictor),
)
