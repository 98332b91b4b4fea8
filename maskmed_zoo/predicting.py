"""`zoo.load`; imported with the package, it imports the rest when called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from maskmed_zoo.inference.predictor import Predictor


def load(
    source: str | Path | Sequence[str | Path],
    *,
    weights: Literal["last", "best"] = "last",
    device: str | None = None,
    postprocess: bool = True,
    **overrides: Any,
) -> Predictor:
    """The network of a run or of exported weights, ready to segment arrays and files; imports nothing of training.

    Args:
        source: the folder of a run, of a study, whose folds' probabilities are averaged, or an exported folder; or
            several, whose networks are averaged, each counted once. `RUN@best` takes the best weights of one. Or of a
            model that nnU-Net v2 trained, or of one of its folds, which predicts as nnU-Net does.
        weights: which checkpoint of a run: the last, or the one with the highest smoothed validation Dice.
        device: cpu, cuda, cuda:1, mps, …; default: CUDA if there is any, else the CPU.
        postprocess: whether label maps get what `zoo.postprocess` chose for the run or the study, if it did; what is
            averaged of several sources gets none.
        **overrides: settings of inference, with `__` for the dot: `inference__mirror=True`.

    Raises `CheckpointError` if the folder or its weights are missing, broken or of another recipe, or if
    post-processing was chosen for other weights; `ArgumentError` for several that do not share labels, channels,
    preprocessing and windows, and `RecipeError` for wrong settings.
    """
    from maskmed_zoo.arguments import PATH, expect, expect_path, expect_several
    from maskmed_zoo.recipe import by_keyword
    from maskmed_zoo.runner.load import load_together

    several = [source] if isinstance(source, PATH) else source
    if isinstance(source, PATH):
        expect_path("source", source, "the folder of a run or of exported weights")
    else:
        expect_several("source", source, PATH, "the folder of a run or of exported weights, or several")
    expect("weights", weights, (str,), "'last' or 'best'")
    expect("postprocess", postprocess, (bool,), "True or False")
    settings = by_keyword("load", overrides, ("source", "weights", "device", "postprocess"))
    return load_together([*several], which=weights, device=device, postprocess=postprocess, overrides=settings)
