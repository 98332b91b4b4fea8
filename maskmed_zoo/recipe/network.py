"""What of a recipe decides whether weights fit and mean the same: the network, and what it sees.

Weights carry this section itself. It is read again by the code of today and compared setting by setting, so a setting
that has been added since, with a default that changes nothing, makes no stranger of what was trained before.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from maskmed_zoo.errors import RecipeError
from maskmed_zoo.recipe import strict_yaml
from maskmed_zoo.recipe.difference import first_difference
from maskmed_zoo.recipe.loader import parse_recipe
from maskmed_zoo.recipe.schema import Recipe
from maskmed_zoo.renamed import as_first_written

PARTS = ("encoder", "neck", "decoder", "head")
SEEN = ("channels", "labels", "spacing", "normalization", "use_mask_for_norm")
"""Keys of `data` that decide what the network sees."""
_CHECKED = ("channels", "labels", "spacing", "normalization")
"""Those of which earlier versions wrote a checksum."""


def network_section(recipe: Recipe) -> dict[str, Any]:
    """The parts of the network and what it sees; JSON-able."""
    content = recipe.model_dump(mode="json")
    return {
        "model": {part: content["model"][part] for part in PARTS},
        "data": {key: content["data"][key] for key in SEEN},
    }


def network_difference(stored: str, recipe: Recipe, recipe_file: Path) -> str | None:
    """In what the section that weights carry differs from a recipe's, in words; None where they are the same.

    Weights of before the section was kept carry a checksum instead, of the recipe beside them.
    """
    if not stored.startswith("{"):
        written: dict[str, Any] = strict_yaml.read(recipe_file).data
        known = {_checksum(content) for content in (written, recipe.model_dump(mode="json"))}
        return None if stored in known else "model or data sections differ (which setting, these weights do not say)"
    try:
        section = cast(dict[str, dict[str, Any]], json.loads(stored))
        content = recipe.model_dump(mode="json")
        content["model"] |= {part: section["model"][part] for part in PARTS}
        # A key that the section has not yet has its default, not what this recipe says.
        kept = {key: value for key, value in content["data"].items() if key not in SEEN}
        content["data"] = kept | {key: section["data"][key] for key in SEEN if key in section["data"]}
        known = parse_recipe(content, "the weights", unread=("loss",))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its description of the network cannot be read ({type(error).__name__}: {error})"
    except RecipeError as error:
        return str(error.problems[0])
    return first_difference(network_section(known), network_section(recipe))


def _checksum(content: dict[str, Any]) -> str:
    """What earlier versions wrote into weights, of a recipe's content."""
    seen = {key: content.get("data", {}).get(key) for key in _CHECKED}
    text = json.dumps(as_first_written({"model": content.get("model"), "data": seen}), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
