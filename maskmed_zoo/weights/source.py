"""Where weights come from: a file, a run, an exported folder, or a model that nnU-Net v2 trained, as nnU-Net leaves it.

```
nnUNetTrainer__nnUNetPlans__3d_fullres/   dataset.json, plans.json
    fold_0/                               checkpoint_final.pth, or of a training cut short checkpoint_best.pth
```

A file of ours says in its header what its labels and channels are called. Of others that is read where it lies beside
them: in a run's or an export's recipe, in nnU-Net's `dataset.json`. nnU-Net itself is not needed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml

from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.files import is_file, is_folder, read_json, read_text
from maskmed_zoo.labels import BACKGROUND, IGNORE
from maskmed_zoo.plain_yaml import FAST_LOADER, LARGEST_YAML, faults
from maskmed_zoo.weights.card import CARD, RECIPE, RUN_WEIGHTS, WEIGHTS, check_exported
from maskmed_zoo.weights.files import State, read_state

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
"""Of a fold of nnU-Net, the one to take first."""
DATASET = "dataset.json"


def weights_in(path: Path) -> Path:
    """The weights file that a path stands for.

    That is itself, a run's last one, an exported folder's, which is checked, a fold's of nnU-Net, or of a folder of
    folds the first's, `fold_all` last. Raises `CheckpointError` for another folder, and where there is none.
    """
    if is_file(path):
        return path
    if not is_folder(path):
        raise CheckpointError(f"{path}: no such file or folder; give weights, a run or an exported folder")
    if is_file(path / CARD):
        check_exported(path)
        return path / WEIGHTS
    if is_file(path / RUN_WEIGHTS):
        return path / RUN_WEIGHTS
    for folder in (path, *sorted(path.glob("fold_*"), key=_number)):
        for name in CHECKPOINTS:
            if is_file(folder / name):
                return folder / name
    raise CheckpointError(
        f"{path}: no {CARD} and no {RUN_WEIGHTS}, so no exported weights; give a file, a run or an exported folder, or "
        f"a model of nnU-Net, fold_0 with {CHECKPOINTS[0]} or the folder of its folds"
    )


def read_source(path: Path) -> State:
    """The tensors that a path stands for, with the names of labels and channels wherever they stand."""
    file = weights_in(path)
    state = read_state(file)
    return replace(state, header=_beside(file) | state.header)


def _number(folder: Path) -> tuple[int, str]:
    """Of a fold; `fold_all` and what else there may be come last."""
    number = folder.name.removeprefix("fold_")
    return (int(number) if number.isdecimal() and len(number) < 5 else 10**5, number)


def _beside(file: Path) -> dict[str, str]:
    """Names of labels and channels that stand beside weights, as a header has them."""
    if file.name in (WEIGHTS, RUN_WEIGHTS) and is_file(file.with_name(RECIPE)):
        return _of_recipe(file.with_name(RECIPE))
    if file.name.startswith("checkpoint_") and file.parent.name.startswith("fold_"):
        dataset = file.parent.with_name(DATASET)
        return _of_dataset(read_json(dataset, error=CheckpointError)) if is_file(dataset) else {}
    return {}


def _of_recipe(path: Path) -> dict[str, str]:
    text = read_text(path, largest=LARGEST_YAML, error=CheckpointError)
    try:
        content: Any = None if faults(text, str(path)) else yaml.load(text, FAST_LOADER)
    except yaml.YAMLError:
        return {}
    data: Any = content.get("data") if isinstance(content, dict) else None
    return _facts(data.get("labels"), data.get("channels")) if isinstance(data, dict) else {}


def _of_dataset(content: Any) -> dict[str, str]:
    found = cast(dict[str, Any], content) if isinstance(content, dict) else {}
    channels = found.get("channel_names") or found.get("modality")
    if isinstance(channels, dict):
        named = cast(dict[str, Any], channels)
        channels = [named[key] for key in sorted(named, key=lambda key: (len(key), key))]
    return _facts(found.get("labels"), channels)


def _facts(labels: Any, channels: Any) -> dict[str, str]:
    facts: dict[str, str] = {}
    if isinstance(labels, dict) and labels:
        values = {name: value for name, value in cast(dict[str, Any], labels).items() if name != IGNORE}
        if all(type(value) is int for value in values.values()):
            facts["class_names"] = json.dumps(sorted(values, key=lambda name: values[name]))
        else:  # regions, which nnU-Net keeps in their order and tells apart from one another, not from background
            facts["class_names"] = json.dumps([name for name in values if name != BACKGROUND])
    if isinstance(channels, list):
        facts["channel_names"] = json.dumps(channels)
    return facts
