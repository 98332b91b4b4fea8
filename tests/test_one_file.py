"""The promise of the seams: a metric, an image format, an export format and a consumer of windows are one file each.

Each is really added to a copy of the package and used there; nothing else is touched, but the list of file names that
exported folders may hold.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "tests" / "runner" / "earlier_run"
CONSUMER = """
import sys, torch
import maskmed_zoo as zoo
from maskmed_zoo.inference.sliding_window import Windows, visit

class Foreground:
    voxels = 0
    def take(self, places, output):
        self.voxels += int((output.log_probabilities().argmax(1) > 0).sum())

predictor = zoo.load(sys.argv[1], device="cpu")
image, counter = torch.zeros(1, 8, 24, 16), Foreground()
windows = Windows.of(image, (8, 16, 16), 0.5)
for places, output in visit(predictor.run, image, windows, batch_size=1, device="cpu"):
    counter.take(places, output)
print(len(windows.places), counter.voxels >= 0)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the three files that CONTRIBUTING shows."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("maskmed_zoo", "registry", "recipes"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name, code in examples().items():
        (root / name).write_text(code, encoding="utf-8")
    card = root / "maskmed_zoo" / "weights" / "card.py"
    text = card.read_text(encoding="utf-8")
    assert text.count("FILES = (RECIPE, WEIGHTS, README") == 1
    names = "" if '"weights.pt"' in text else '"weights.pt", '
    card.write_text(text.replace("FILES = (RECIPE, WEIGHTS, README", f"FILES = ({names}RECIPE, WEIGHTS, README"))
    return root


def examples() -> dict[str, str]:
    """The files that CONTRIBUTING shows, by their paths."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"`(maskmed_zoo/\S+\.py)`:\n\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(found) == 3
    return found


def run(tree: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_metric_and_an_image_format(tree: Path, tmp_path: Path) -> None:
    """Images of the new format are predicted from a data set of that ending, and its label maps scored both ways."""
    program = f"""
import json, sys
from pathlib import Path
import numpy as np
import maskmed_zoo as zoo
from maskmed_zoo.cli.main import main
from maskmed_zoo.data.dataset import open_dataset
assert zoo.__file__.startswith({str(tree)!r}), zoo.__file__
root = Path({str(tmp_path)!r})
affine = np.diag([1.0, 1.0, 2.0, 1.0])
for folder in ("data/imagesTr", "data/labelsTr", "predictions"):
    (root / folder).mkdir(parents=True)
labels = np.zeros((20, 18, 9), np.uint8)
labels[12:17, 5:11, 3:7] = 1
image = np.random.default_rng(0).normal(0, 20, labels.shape) + 200.0 * labels
for name in ("a", "b"):
    np.savez(root / f"data/imagesTr/{{name}}_0000.npz", voxels=image, affine=affine)
    np.savez(root / f"data/labelsTr/{{name}}.npz", voxels=labels, affine=affine)
    np.savez(root / f"predictions/{{name}}.npz", voxels=np.roll(labels, 1, 0) * (name == "a"), affine=affine)
description = {{"channel_names": {{"0": "CT"}}, "labels": {{"background": 0, "left": 1}}, "file_ending": ".npz"}}
(root / "data/dataset.json").write_text(json.dumps(description))
assert open_dataset(root / "data").ending == ".npz"
written = zoo.load({str(RUN)!r}, device="cpu").files([root / "data/imagesTr"], root / "out")
assert [path.name for path in written] == ["a.nii.gz", "b.nii.gz"]
assert zoo.load({str(RUN)!r}, device="cpu").files([root / "data/imagesTr/a_0000.npz"], root / "one.npz")
np.testing.assert_array_equal(np.load(root / "one.npz")["affine"], affine)
pair = ["--pred", str(root / "predictions"), "--ref", str(root / "data/labelsTr"), "--json", str(root / "s.json")]
assert main(["evaluate", *pair, "--metrics", "missed_volume"]) == 0
scores = json.loads((root / "s.json").read_text())
print(json.dumps([scores["cases"][0]["dice"], scores["metrics"]["missed_volume"]["cases"]]))
"""
    dice, volumes = json.loads(run(tree, "-c", program).splitlines()[-1])
    assert dice == {"left": pytest.approx(0.8)}
    voxels = [6 * 4, 5 * 6 * 4]  # one layer, and all
    assert [case["missed_volume"]["left"] for case in volumes] == pytest.approx([n * 2 / 1000 for n in voxels])


def test_an_export_format(tree: Path, tmp_path: Path) -> None:
    words = ("-m", "maskmed_zoo", "export", str(RUN), "--license", "MIT", "--format")
    run(tree, *words, "state_dict", "--out", str(tmp_path / "out"))
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert set(card["files"]) == {"README.md", "recipe.yaml", "weights.safetensors", "weights.pt"}
    assert "state_dict,torch,weights" in run(tree, "-m", "maskmed_zoo", "export", "--help")


def test_a_consumer_of_windows(tree: Path) -> None:
    assert run(tree, "-c", CONSUMER, str(RUN)).split() == ["2", "True"]
