"""All kinds of input, by name, in the order of the campaign."""

from __future__ import annotations

from tests.fuzz.data import DATA
from tests.fuzz.harness import Target
from tests.fuzz.nnunet import NNUNET
from tests.fuzz.recipes import RECIPES
from tests.fuzz.runs import RUNS
from tests.fuzz.weights import WEIGHTS

TARGETS: dict[str, Target] = {target.name: target for target in (*RECIPES, *DATA, *RUNS, *WEIGHTS, *NNUNET)}
