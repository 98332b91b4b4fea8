"""Recipes: what an experiment is, as a typed and checked file."""

from maskmed_zoo.recipe.find import recipe_path
from maskmed_zoo.recipe.loader import by_keyword, dump_recipe, keys_of, load_recipe
from maskmed_zoo.recipe.schema import Recipe, recipe_type

__all__ = ["Recipe", "by_keyword", "dump_recipe", "keys_of", "load_recipe", "recipe_path", "recipe_type"]
