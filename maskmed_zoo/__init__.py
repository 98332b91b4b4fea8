"""maskmed-zoo: a component zoo for 3-D medical image segmentation.

```python
import maskmed_zoo as zoo

zoo.list("*amos*")
model = zoo.create("maskmed_amos")

run = zoo.train("maskmed_hippocampus_cpu", data="Dataset004_Hippocampus", out="runs/mine")
predictor = zoo.load("runs/mine")
labels = predictor.segment(image, spacing=(1.0, 1.0, 1.0)).labels
scores = zoo.evaluate("runs/mine")
```

Importing the package imports no torch; what computes does when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from maskmed_zoo.predicting import load
from maskmed_zoo.scoring import compare, evaluate, postprocess
from maskmed_zoo.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from maskmed_zoo.attach import AttachedModel
    from maskmed_zoo.data.check.finding import Finding
    from maskmed_zoo.model import LogitsModel, SegmentationModel
    from maskmed_zoo.planning.plan import Plan
    from maskmed_zoo.recipe import Recipe
    from maskmed_zoo.runner.callbacks import Callback
    from maskmed_zoo.weights.keys import KeyMap
    from maskmed_zoo.weights.load import LoadReport

__all__ = [
    "__version__",
    "as_logits",
    "attach_head",
    "check_data",
    "compare",
    "create",
    "describe",
    "evaluate",
    "list",
    "load",
    "load_recipe",
    "load_weights",
    "plan",
    "postprocess",
    "register",
    "train",
]


def create(
    name_or_recipe: str | Path | Recipe,
    *,
    in_channels: int | None = None,
    num_classes: int | None = None,
    pretrained: bool | str | Path = False,
    strict: bool = True,
    **overrides: Any,
) -> SegmentationModel:
    """The network of a recipe, with fresh weights or those of a file.

    Args:
        name_or_recipe: a model's name (`zoo.list(kind="model")`), a path to a recipe, or a loaded one.
        in_channels: input channels; default: the recipe's.
        num_classes: labels, background counted; default: the recipe's.
        pretrained: a file, a run or an exported folder, see `load_weights`; True: those published on the model's card.
        strict: refuse weights that do not fit whole.
        **overrides: recipe settings by path, with `__` for the dot: `model__head__queries="per_stage"`.

    Raises `RecipeError` for a wrong name, key or value, `JointError` where two components do not fit, and
    `CheckpointError` for weights that cannot be had, read or fitted.
    """
    from maskmed_zoo.arguments import INTEGER, NONE, expect, expect_path
    from maskmed_zoo.build import create as build

    for name, number in (("in_channels", in_channels), ("num_classes", num_classes)):
        expect(name, number, (*INTEGER, *NONE), "a whole number")
    if not isinstance(pretrained, bool):
        expect_path("pretrained", pretrained, "True, False, a file or a folder")
    expect("strict", strict, (bool,), "True or False")
    model = build(name_or_recipe, in_channels, num_classes, overrides)
    if pretrained is not False:
        from maskmed_zoo.weights.published import published

        name = getattr(name_or_recipe, "name", None) or str(name_or_recipe)
        load_weights(model, published(name) if pretrained is True else pretrained, strict=strict)
    return model


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    keys: KeyMap | None = None,
    strict: bool = True,
    minimum: float = 0.5,
) -> LoadReport:
    """Fill a network from weights of this package, nnU-Net v2 or MONAI's SwinUNETR, and report.

    Args:
        model: a network of `create`, or any module.
        source: a file of safetensors or torch, a run (its last weights), an exported folder, nnU-Net's folder of a fold
            or of folds, or a state dict.
        keys: a function from the file's state dict and the module to one under the module's names; default: recognised.
        strict: refuse what does not fit whole. Else input channels and tables of positions are adapted, and rows of
            labels matched by name.
        minimum: smallest share of the network's numbers that must come from the file, where not strict.

    Wrappers around the network, in the file or in the module, make no difference. Raises `CheckpointError`, with the
    model unchanged, for files that cannot be read or do not fit.
    """
    from collections.abc import Mapping

    from torch import nn

    from maskmed_zoo.arguments import NONE, NUMBER, expect, expect_path, takes
    from maskmed_zoo.weights.load import load_weights as load

    expect("model", model, (nn.Module,), "a network, as 'create' gives it")
    if not isinstance(source, Mapping):
        expect_path("source", source, "a file, a folder or a state dict")
    if keys is not None and not takes(keys, 2):
        expect("keys", keys, NONE, "a function of a state dict and a module that gives a state dict")
    expect("strict", strict, (bool,), "True or False")
    expect("minimum", minimum, NUMBER, "a share from 0 to 1")
    return load(model, source, keys=keys, strict=strict, minimum=minimum)


def attach_head(
    network: nn.Module,
    head: str | Mapping[str, Any] = "masked_query",
    *,
    num_classes: int,
    in_channels: int | None = None,
    patch_size: tuple[int, int, int] = (64, 64, 64),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    stages: Sequence[str] | None = None,
    freeze: Literal["body"] | None = None,
) -> AttachedModel:
    """A finished network (b c d h w) -> (b k d h w), of MONAI or your own, with another head. Its weights stay loaded.

    Args:
        network: changed in place: its output convolution, and what the new head makes idle, is taken out.
        head: a head's name (`zoo.list(kind="head")`), or its settings with `kind`.
        num_classes: labels, background counted.
        in_channels: input channels; default: those of its first convolution.
        patch_size: a size (z, y, x) that the network takes and that its strides divide; nothing is computed for it.
        spacing: voxel size of the input in mm (z, y, x).
        stages: names of the modules whose outputs the head reads; default: what entered the output convolution, and
            the decoder's last features at every coarser resolution.
        freeze: "body" trains the head alone.

    Returns a module that is called like the network and gives a `HeadOutput`; `predict` gives log-probabilities.
    Raises `JointError` if the network does not take such an image or no features are found.
    """
    from collections.abc import Mapping

    from torch import nn

    from maskmed_zoo.arguments import INTEGER, NONE, NUMBER, expect, expect_several
    from maskmed_zoo.attach import attach_head as attach

    expect("network", network, (nn.Module,), "a network of PyTorch; zoo.create makes one of a recipe's name")
    expect("head", head, (str, Mapping), "a head's name, or its settings with 'kind'")
    expect("num_classes", num_classes, INTEGER, "the number of labels")
    expect("in_channels", in_channels, (*INTEGER, *NONE), "the number of channels")
    expect_several("patch_size", patch_size, INTEGER, "three whole numbers (z, y, x)", length=3)
    expect_several("spacing", spacing, NUMBER, "three lengths in mm (z, y, x)", length=3)
    if stages is not None:
        expect_several("stages", stages, (str,), "names of modules")
    return attach(
        network,
        head,
        num_classes,
        in_channels=in_channels,
        patch_size=patch_size,
        spacing=spacing,
        stages=stages,
        freeze=freeze,
    )


def as_logits(model: SegmentationModel | AttachedModel) -> LogitsModel:
    """The network as a module (b c d h w) -> (b k d h w), for `sliding_window_inference` and other tools of MONAI.

    Args:
        model: of `create` or `attach_head`; it stays the same network, with the same weights.

    What it gives are logits, or of heads that have none, whose labels are products of masks and classes,
    log-probabilities: their softmax is in both cases the probabilities, and their argmax the labels.
    """
    from maskmed_zoo.arguments import expect
    from maskmed_zoo.attach import AttachedModel
    from maskmed_zoo.model import LogitsModel, SegmentationModel

    expect("model", model, (SegmentationModel, AttachedModel), "a network, as 'create' or 'attach_head' gives it")
    return LogitsModel(model)


def plan(
    data: str | Path,
    *,
    recipe: str | Path | Recipe = "maskmed_amos",
    memory: str | None = None,
) -> Plan:
    """A recipe for nnU-Net's raw folder `data`, planned after nnU-Net's rules, that trains on it as it is.

    Args:
        data: the folder that holds dataset.json.
        recipe: whose network, loss and schedule it has; default: MaskMed as in the paper.
        memory: for a training step, "11G", "8GiB", "900M", …; default: all that the GPU has, "8G" without one.

    Returns a `Plan`: the `recipe`, its YAML `text` with a comment on each planned number, and `comments` by path.
    Raises `RecipeError` and `DataError` as `train` does, `ArgumentError` for a memory that is no size, `UserError` for
    one that the smallest patch does not fit into.
    """
    from maskmed_zoo.arguments import NONE, expect, expect_path
    from maskmed_zoo.planning.plan import plan as planned

    expect_path("data", data, "a data set's folder")
    expect("memory", memory, (str, *NONE), "a size such as '11G'")
    return planned(data, recipe=recipe, memory=memory)


def train(
    recipe: str | Path | Recipe | None = None,
    *,
    data: str | Path | Sequence[str | Path] | None = None,
    out: str | Path | None = None,
    fold: int | Literal["all"] | None = None,
    folds: str | Sequence[int] | None = None,
    device: str | None = None,
    workers: int | None = None,
    resume: bool | str | Path = False,
    init: str | Path | None = None,
    extend_to: int | None = None,
    callbacks: Sequence[Callback] = (),
    **overrides: Any,
) -> Path:
    """Train a recipe on one fold of nnU-Net's raw folder `data`, or of several; returns the run's folder, `out`.

    With `folds`, `out` is a study: the folder of one run per fold, each trained and scored in a process of its own.

    Args:
        recipe: a model's name (`zoo.list(kind="model")`), a path to a recipe, or a loaded one.
        data: the folder that holds dataset.json; of `DIR@all` every case trains and none validates.
        out: a new folder.
        fold: whose cases validate; default: 0. "all": every case trains and none validates.
        folds: several, as "0-4" or [0, 2, 4]: finished ones are not repeated, interrupted ones go on, and the command
            may be given again, or several times at once to share them.
        device: cpu, cuda, cuda:1, mps, …; default: CUDA if there is any, else the CPU.
        workers: loader processes; default: none on the CPU, else up to eight.
        resume: the folder of an interrupted run to continue from its last state; what else it needs, it knows.
            True: that in `out`.
        init: weights to start from, as `load_weights` reads them; what does not fit stays fresh, and is told.
        extend_to: with `resume`, how many epochs the run is to have in place of those it was planned for.
        callbacks: what is told of every step and epoch, see `maskmed_zoo.runner.callbacks`.
        **overrides: recipe settings by path, with `__` for the dot: `train__epochs=10`.

    Progress goes to standard error; `zoo.evaluate(run)` then scores the validation cases. Raises `RecipeError` for a
    wrong name, key or value, `DataError` for data that cannot be used or contradict the recipe, `CheckpointError` for a
    folder that holds another run and for weights that cannot be had or do not fit, `ArgumentError` where something is
    missing, and `NonFiniteError` if training diverges; with `folds`, after the others are trained, `ZooError` for those
    that failed.
    """
    from pathlib import Path

    from maskmed_zoo.arguments import INTEGER, NONE, PATH, expect, expect_folders, expect_path, expect_several
    from maskmed_zoo.recipe import by_keyword
    from maskmed_zoo.runner.begin import begin, begin_study
    from maskmed_zoo.runner.callbacks import Callback
    from maskmed_zoo.runner.study import check_failures

    if not (isinstance(fold, str) and fold == "all"):
        expect("fold", fold, (*INTEGER, *NONE), "a whole number, or 'all' to train on every case")
    for name, path, what in (("out", out, "a folder"), ("init", init, "a file or a folder of weights")):
        expect_path(name, path, what, optional=True)
    expect("workers", workers, (*INTEGER, *NONE), "a whole number")
    expect("extend_to", extend_to, (*INTEGER, *NONE), "a number of epochs")
    expect("resume", resume, (bool, *PATH), "the folder of a run, True or False")
    if data is not None:
        expect_folders(data)
    expect_several("callbacks", callbacks, (Callback,), "a list of Callbacks")
    names = ("data", "out", "fold", "folds", "device", "workers", "resume", "init", "extend_to", "callbacks")
    settings, folder = by_keyword("train", overrides, names), None if out is None else Path(out)
    start = None if init is None else Path(init)
    where: dict[str, Any] = {"data": data, "out": folder, "device": device, "workers": workers, "init": start}
    alone: dict[str, Any] = {"fold": fold, "resume": resume, "extend_to": extend_to, "callbacks": [*callbacks]}
    if folds is not None:
        if not isinstance(folds, str):
            expect_several("folds", folds, INTEGER, "numbers of folds, or text such as '0-4'")
        check_failures(begin_study(recipe, settings, folds=folds, alone=alone, **where))
        return Path(where["out"])
    run, *_ = begin(recipe, settings, **where, **alone)
    return run.path


def check_data(data: str | Path, *, workers: int | None = None) -> Sequence[Finding]:
    """Every problem of every case of a data set, as `maskmed-zoo data check` lists them; none where it is empty.

    Args:
        data: nnU-Net's raw folder, the one that holds dataset.json.
        workers: threads that read a case each; default: one for each core, up to eight.

    A finding has `case`, `file`, `kind`, `severity` ("error" or "remark"), `problem` and `remedy`. Raises `DataError`
    for a folder that is no data set, or whose dataset.json cannot be used.
    """
    from maskmed_zoo.arguments import INTEGER, NONE, expect, expect_path
    from maskmed_zoo.data.check.check import check_data as check

    expect_path("data", data, "a data set's folder")
    expect("workers", workers, (*INTEGER, *NONE), "a whole number")
    return check(data, workers=workers)


def list(pattern: str = "*", *, kind: str | None = None) -> Sequence[str]:
    """Names of components and models that match a shell wildcard, of one kind or of all, sorted by kind and name."""
    from maskmed_zoo import registry
    from maskmed_zoo.arguments import NONE, expect

    expect("pattern", pattern, (str,), "a name or a shell wildcard")
    expect("kind", kind, (str, *NONE), f"one of {', '.join(registry.KINDS)}")
    return [card.name for card in registry.find(pattern, kind=kind)]


def describe(name: str) -> dict[str, Any]:
    """The facts on a component's or model's card. Raises `RegistryError` with the nearest name if there is none."""
    from maskmed_zoo import registry
    from maskmed_zoo.arguments import expect

    expect("name", name, (str,), "the name of a component or a model")
    return registry.card(name).to_json()


def load_recipe(
    name_or_path: str | Path | Recipe, overrides: Mapping[str, Any] | None = None, **keywords: Any
) -> Recipe:
    """A checked recipe by name or path, or of a loaded one.

    Args:
        name_or_path: a model's name (`zoo.list(kind="model")`), a path to a recipe, or a loaded one.
        overrides: "a.b" to values.
        **keywords: the same with `__` for the dot, as in `create`: `train__epochs=10`.

    Raises `RecipeError` with every problem, and `ArgumentError` for what is no recipe's name at all.
    """
    from collections.abc import Mapping

    from maskmed_zoo.arguments import NONE, expect
    from maskmed_zoo.recipe import by_keyword
    from maskmed_zoo.recipe import load_recipe as load

    expect("overrides", overrides, (Mapping, *NONE), "a mapping such as {'train.epochs': 10}")
    return load(name_or_path, {**(overrides or {}), **by_keyword("load_recipe", keywords, ("overrides",))})


def register(name: str, *, kind: str, summary: str = "") -> Callable[[Any], Any]:
    """Class decorator that adds a component at run time; see CONTRIBUTING for the contract."""
    from maskmed_zoo import registry
    from maskmed_zoo.arguments import expect

    for argument, text in (("name", name), ("kind", kind), ("summary", summary)):
        expect(argument, text, (str,), "a text")
    return registry.register(name, kind=kind, summary=summary)
