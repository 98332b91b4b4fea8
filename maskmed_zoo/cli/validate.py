"""Check a recipe: every key and value, and that its components and patch fit. It reports everything that is wrong."""

from __future__ import annotations

import argparse

from maskmed_zoo.build import report
from maskmed_zoo.cli.output import add_recipe, write
from maskmed_zoo.recipe import load_recipe


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    add_recipe(parser)


def run(args: argparse.Namespace) -> None:
    """Print one line if all is well."""
    recipe = load_recipe(args.recipe, args.overrides)
    if recipe.data.channels is None or recipe.data.labels is None:
        write(f"{args.recipe}: valid; channels or labels are left to the data set, so the joints are not checked yet")
        return
    report(recipe)
    write(f"{args.recipe}: valid")
