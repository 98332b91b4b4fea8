"""Copy a built-in recipe, comments included, to a file of your own. An existing file is never replaced.

The copy is named after its file. What its header says of scores is left out: the recipe as it is reached them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmed_zoo.cli.output import write, write_new
from maskmed_zoo.errors import RecipeError, escaped
from maskmed_zoo.files import is_folder, read_text
from maskmed_zoo.plain_yaml import LARGEST_YAML


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe's name and where the copy goes."""
    parser.add_argument("name", metavar="NAME", help="a model's name ('maskmed-zoo list --kind model')")
    parser.add_argument("dest", metavar="DEST", type=Path, help="a new file (.yaml), or a folder")


def run(args: argparse.Namespace) -> None:
    """Write the copy; refuses to overwrite."""
    from maskmed_zoo.recipe.find import recipe_path
    from maskmed_zoo.recipe.own_copy import own_copy

    source = recipe_path(args.name)
    target = args.dest / source.name if is_folder(args.dest) else args.dest
    if target.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"{target}: a recipe's name ends in .yaml; give such a file or an existing folder")
    text = read_text(source, largest=LARGEST_YAML, error=RecipeError)
    write_new(target, own_copy(text, escaped(target.name)))
    write(f"{target}")
