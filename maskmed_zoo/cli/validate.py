"""Check a recipe: every key and value, and that its components and patch fit. It reports everything that is wrong.

Where the recipe leaves channels or labels to the data set, the fit is checked by 'train', and the answer says so.
"""

from __future__ import annotations

import argparse

from maskmed_zoo.cli.output import add_recipe, write


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe and what overrides its values."""
    add_recipe(parser)


def run(args: argparse.Namespace) -> None:
    """Print one line if all is well."""
    from maskmed_zoo.build import network_facts
    from maskmed_zoo.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    if recipe.data.channels is None or recipe.data.labels is None:
        write(f"{args.recipe}: valid; channels or labels are left to the data set, so the joints are not checked yet")
        return
    network_facts(recipe)
    write(f"{args.recipe}: valid")
