"""Plan a recipe for a data set: spacing, patch, levels, batch and normalization after nnU-Net's rules, each explained.

The recipe is written to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmed_zoo.cli.output import write, write_new, write_text


def configure(parser: argparse.ArgumentParser) -> None:
    """The data set, the recipe to start from, the memory, and where the plan goes."""
    parser.add_argument("data", metavar="DIR", help="nnU-Net raw folder, the one that holds dataset.json")
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        default="maskmed_amos",
        help="a model's name or the path of a recipe, whose network, loss and schedule the plan is made for (default: "
        "%(default)s, MaskMed as in the paper)",
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="for a training step, as 11G, 8GiB or 900M (default: all that the GPU has, 8G without one)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="a new file (.yaml) instead of standard output")


def run(args: argparse.Namespace) -> None:
    """Plan and write."""
    from maskmed_zoo.errors import OutputError, RecipeError, escaped
    from maskmed_zoo.files import is_folder
    from maskmed_zoo.planning.plan import plan

    if args.out is not None and args.out.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"{args.out}: a recipe's name ends in .yaml; give such a file")
    if args.out is not None and args.out.exists():
        raise OutputError(f"{args.out}: exists already; give another name")
    if args.out is not None and not is_folder(args.out.parent):  # before cases are read, perhaps for an hour
        raise OutputError(f"{args.out}: no folder {args.out.parent} to write into; make it")
    file = "mine.yaml" if args.out is None else escaped(str(args.out))
    found = plan(args.data, recipe=args.recipe, memory=args.memory, file=file)
    if args.out is None:
        write_text(found.text)
    else:
        write_new(args.out, found.text)
        write(str(args.out))
