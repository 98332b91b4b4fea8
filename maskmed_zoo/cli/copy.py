"""Copy a built-in recipe, comments included, to a file of your own. An existing file is never replaced."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmed_zoo.cli.output import write
from maskmed_zoo.errors import OutputError, RecipeError


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe's name and where the copy goes."""
    parser.add_argument("name", metavar="NAME", help="a model's name ('maskmed-zoo list --kind model')")
    parser.add_argument("dest", metavar="DEST", type=Path, help="a new file (.yaml), or a folder")


def run(args: argparse.Namespace) -> None:
    """Write the copy; refuses to overwrite."""
    from maskmed_zoo.recipe import recipe_path

    source = recipe_path(args.name)
    target = args.dest / source.name if args.dest.is_dir() else args.dest
    if target.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"{target}: a recipe's name ends in .yaml; give such a file or an existing folder")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise OutputError(f"{target}: exists already; give another name") from error
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror}") from error
    write(f"{target}")
