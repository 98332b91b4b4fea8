"""Write a trainer where nnU-Net v2 looks for trainers of others: a small Python file and, beside it, its recipe.

nnU-Net finds trainers by class name, so a recipe becomes a class: `pointwise_amos` is
`nnUNetTrainer_MaskMed_pointwise_amos`. The recipe is written out whole: what was trained can be predicted with after
the package, or the user's own file, has changed.
"""

from __future__ import annotations

import re
from pathlib import Path

from maskmed_zoo.errors import OutputError
from maskmed_zoo.files import make_folder, read_text, write_atomically
from maskmed_zoo.recipe import Recipe, dump_recipe

PREFIX = "nnUNetTrainer_MaskMed"
TEXT = '''\
"""Written by `maskmed-zoo nnunet install`; nnU-Net v2 finds it where nnUNet_extTrainer points."""

from pathlib import Path

from maskmed_zoo.interop.nnunet_trainer import MaskMedTrainer


class {name}(MaskMedTrainer):
    """Neck, head, loss and training of the recipe beside this file."""

    recipe_file = Path(__file__).with_suffix(".yaml")
'''


def trainer_name(recipe: Recipe | None) -> str:
    """The trainer's class for a recipe; None: the default one."""
    return PREFIX if recipe is None else f"{PREFIX}_{re.sub(r'[^A-Za-z0-9]', '_', recipe.name)}"


def install(folder: Path, name: str, recipe: Recipe) -> Path:
    """Write the class `name` with its recipe into `folder`, made if need be; returns the Python file.

    Raises `CheckpointError` if the class is there with another recipe, which its checkpoints need.
    """
    file = folder / f"{name}.py"
    texts = {file.with_suffix(".yaml"): dump_recipe(recipe), file: TEXT.format(name=name)}
    make_folder(folder)
    for path, text in texts.items():
        if path.exists() and read_text(path, error=OutputError) != text:
            raise OutputError(
                f"{path}: exists with other content, and trained models need it; use --set name=… or another --dir"
            )
    for path, text in texts.items():
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
    return file
