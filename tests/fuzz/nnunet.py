"""Plans and data set descriptions that nnU-Net writes."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from maskmed_zoo.recipe.nnunet_plan import read_configuration, recipe_of_plan
from tests.fuzz.harness import GIVEN, Target
from tests.fuzz.mutate import json_bytes, mutated_tree
from tests.interop.plans import DATASET, configuration


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


NNUNET = (Target("nnUNetPlans.json", 2000, _plans, _read_plans),)
