"""Shared fixtures: a tiny data set on disk, a tiny recipe, and the real data where it is there."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import settings

from maskmed_zoo.errors import DataError, MemoryShortageError, OutputError

settings.register_profile("repeatable", derandomize=True)  # other examples: pytest --hypothesis-profile default
settings.load_profile("repeatable")

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
TINY = """\
# A recipe small enough for tests.
schema_version: 1
name: tiny
model:
  encoder: {kind: plain_conv, channels: [4, 8, 8], blocks: 1}
  neck: {kind: fsad, query_levels: 1, width: 12, attention_heads: 2, points: 2}
  decoder: {kind: unet, blocks: 1}
  head: {kind: masked_query, width: 12, attention_heads: 2}
  loss: {kind: set_criterion}
data:
  channels: [CT]
  labels: {background: 0, left: 1, right: 2}
  spacing: [2, 1, 1]
  patch_size: [8, 16, 16]
  mirror_axes: [z, y]
train:
  epochs: 2
  iterations_per_epoch: 3
  batch_size: 2
  validation_iterations: 1
  optimizer: {kind: adamw, lr: 3e-3, transformer_scale: 0.3, warmup_iterations: 2}
inference: {}
"""


def pytest_configure() -> None:
    """Ctrl-C is heard by tests that are started in the background too, whose shell has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    """The path of the tiny recipe."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """An array (x y z) as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def make_dataset(root: Path, cases: int = 4, seed: int = 0) -> Path:
    """Noise with a bright box left and a dark box right."""
    rng = np.random.default_rng(seed)
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])  # LPS, so that reading has to reorient
    for index in range(cases):
        size = (18 + 2 * (index % 2), 18, 9)
        image = rng.normal(0, 20, size).astype(np.float32)
        labels = np.zeros(size, np.uint8)
        y, z = int(rng.integers(5, 9)), int(rng.integers(2, 4))
        labels[11:16, y : y + 6, z : z + 4] = 1  # high x in an LPS file is left
        labels[2:7, y : y + 6, z : z + 4] = 2
        image[labels == 1] += 200
        image[labels == 2] -= 200
        write_nifti(root / "imagesTr" / f"case_{index:02d}_0000.nii.gz", image, affine)
        write_nifti(root / "labelsTr" / f"case_{index:02d}.nii.gz", labels, affine)
    description = {
        "name": "Boxes",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "left": 1, "right": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return root


def make_partial_dataset(root: Path) -> Path:
    """`make_dataset` with other names, other label values, a label that no case has, and `left` missing in part_01."""
    make_dataset(root, cases=3, seed=5)
    for path in sorted(root.glob("*/case_*.nii.gz")):
        path.rename(path.with_name(path.name.replace("case_", "part_")))
    for path in sorted((root / "labelsTr").iterdir()):
        stored = nib.load(path)
        table = np.array([0, 0, 1] if path.name.startswith("part_01") else [0, 3, 1], np.uint8)
        write_nifti(path, table[np.asarray(stored.dataobj)], stored.affine)
    description = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    description |= {"name": "Partial", "labels": {"background": 0, "right": 1, "third": 2, "left": 3}}
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    annotated = {"part_00": [1, 3], "part_01": [1, 2], "part_02": [1, 2, 3]}
    (root / "annotated.json").write_text(json.dumps(annotated), encoding="utf-8")
    return root


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A data set of four cases in nnU-Net's raw layout."""
    return make_dataset(tmp_path / "Dataset001_Boxes")


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    """Three cases, partly annotated, with the label names of `dataset` and other values."""
    return make_partial_dataset(tmp_path / "Dataset002_Partial")


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; the test is skipped where it is not beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA.name} beside the checkout")
    return SHARED_DATA


def refusal(call: Callable[..., object], *arguments: object) -> str:
    """The one-line message of the `DataError`, `MemoryShortageError` or `OutputError` that a call raises."""
    with pytest.raises((DataError, MemoryShortageError, OutputError)) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message
