"""Trainers for nnU-Net v2: write one that trains a recipe's neck, head and loss inside nnU-Net."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
from pathlib import Path

from maskmed_zoo.cli.output import add_set, write

DEFAULT_RECIPE = "maskmed_amos"
"""The recipe of the class without a suffix."""
INSTALL = "Write a trainer into a folder, and print the line that lets nnU-Net find it"


def configure(parser: argparse.ArgumentParser) -> None:
    """The action `install`, with the recipe and the folder of the trainer."""
    action = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    adding = action.add_parser("install", allow_abbrev=False, help=INSTALL, description=INSTALL)
    adding.add_argument(
        "--recipe",
        metavar="RECIPE",
        help="a model's name, or the path of a recipe (.yaml), for the class nnUNetTrainer_MaskMed_NAME (default: "
        f"{DEFAULT_RECIPE}, and without --set the class is nnUNetTrainer_MaskMed)",
    )
    adding.add_argument(
        "--dir",
        metavar="DIR",
        type=Path,
        default=Path("nnunet_trainers"),
        help="folder for the trainer, made if need be (default: %(default)s)",
    )
    add_set(adding)


def run(args: argparse.Namespace) -> None:
    """Write the trainer; print the line that lets nnU-Net find it, and a command that uses it."""
    from maskmed_zoo.interop.nnunet_install import install, trainer_name
    from maskmed_zoo.recipe import load_recipe

    recipe = load_recipe(args.recipe or DEFAULT_RECIPE, args.overrides)
    is_default = args.recipe is None and not args.overrides
    file = install(args.dir.resolve(), trainer_name(None if is_default else recipe), recipe)
    write(f"export nnUNet_extTrainer={shlex.quote(str(file.parent))}")
    write(f"# then: nnUNetv2_train DATASET 3d_fullres FOLD -tr {file.stem}")
    if importlib.util.find_spec("nnunetv2") is None:
        write("# nnU-Net is not installed here: pip install 'maskmed-zoo[nnunet]'")
