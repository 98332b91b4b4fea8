"""Print the JSON Schema of recipes, over all components installed now, for completion and checks in editors."""

from __future__ import annotations

import argparse

from maskmed_zoo.cli.output import write_json


def configure(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> None:
    """Print the schema."""
    from maskmed_zoo.recipe import recipe_type

    del args
    write_json(recipe_type().model_json_schema())
