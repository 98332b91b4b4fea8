"""An unmodified nnU-Net v2 with our trainer: plan, train, kill, continue, validate, predict, on six tiny cases.

nnU-Net reads its folders from the environment when it is imported and starts processes of its own, so it runs in one
process beside the tests, through the entry points of its commands.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import main
from tests.conftest import make_dataset

pytestmark = pytest.mark.skipif(find_spec("nnunetv2") is None, reason="nnunetv2 is not installed")
NAME = "nnUNetTrainer_MaskMed_tiny"
DRIVER = """
import multiprocessing, os, sys
from pathlib import Path

multiprocessing.cpu_count = lambda: 1

if __name__ == "__main__":
    from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry
    from nnunetv2.inference.predict_from_raw_data import predict_entry_point
    from nnunetv2.run.run_training import run_training_entry
    from maskmed_zoo.errors import CheckpointError
    from maskmed_zoo.interop import nnunet_trainer
    from maskmed_zoo.interop.nnunet_trainer import MaskMedTrainer

    def call(entry, *words):
        sys.argv = ["nnunet", *words]
        entry()

    def kill(self):
        raise KeyboardInterrupt

    name, images, out = sys.argv[1:]
    training = ["1", "3d_fullres", "0", "-tr", name, "-device", "cpu"]
    call(plan_and_preprocess_entry, "-d", "1", "-c", "3d_fullres", "-npfp", "1", "-np", "1")
    os.environ["nnUNet_n_proc_DA"] = "0"  # augment in this process; the planner refuses that
    begin = MaskMedTrainer.on_train_epoch_start
    MaskMedTrainer.on_train_epoch_start = lambda self: kill(self) if self.current_epoch == 1 else begin(self)
    try:
        call(run_training_entry, *training)
    except KeyboardInterrupt:
        print("killed in epoch 1")
    MaskMedTrainer.on_train_epoch_start = begin
    recipe = Path(os.environ["nnUNet_extTrainer"], name + ".yaml")
    own = recipe.read_text()
    recipe.write_text(own.replace("gradient_clip: 12.0", "gradient_clip: 6.0"))
    nnunet_trainer._read.cache_clear()
    try:
        call(run_training_entry, *training, "--c")
    except CheckpointError as error:
        print("refused:", error)
    recipe.write_text(own)
    nnunet_trainer._read.cache_clear()
    call(run_training_entry, *training, "--c")
    call(predict_entry_point, "-i", images, "-o", out, "-d", "1", "-c", "3d_fullres", "-tr", name, "-f", "0",
         "-device", "cpu", "-npp", "1", "-nps", "1", "--save_probabilities")
"""


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A data set with an ignore label, and nnU-Net's folders."""
    root = make_dataset(tmp_path / "raw" / "Dataset001_Boxes", cases=6)
    description = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(description | {"labels": description["labels"] | {"ignore": 3}}))
    for path in (root / "labelsTr").iterdir():
        stored = nib.load(path)
        array = np.asarray(stored.dataobj).copy()
        array[:2, :2, :2] = 3
        nib.save(nib.Nifti1Image(array, stored.affine), path)
    return tmp_path


def run(folders: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {f"nnUNet_{name}": str(folders / name) for name in ("raw", "preprocessed", "results")}
    environment |= {
        "nnUNet_extTrainer": str(folders / "trainers"), "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1",
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    driver = folders / "driver.py"
    driver.write_text(DRIVER, encoding="utf-8")
    images = folders / "raw" / "Dataset001_Boxes" / "imagesTr"
    return subprocess.run(
        [sys.executable, str(driver), NAME, str(images), str(folders / "out")], env=environment, cwd=folders,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def test_plan_train_kill_continue_validate_predict(
    folders: Path, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["nnunet", "install", "--recipe", str(tiny_recipe), "--dir", str(folders / "trainers")]
    assert main([*words, "--set", "train.iterations_per_epoch=2", "--set", "train.freeze=[neck]"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"export nnUNet_extTrainer={folders / 'trainers'}\n")
    assert NAME in printed

    done = run(folders)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "killed in epoch 1" in done.stdout
    assert re.search(r"^refused: .*recipe.yaml: the training run began with another recipe", done.stdout, re.MULTILINE)
    assert len(re.findall(r"^.*: Epoch 0 *$", done.stdout, re.MULTILINE)) == 1
    assert len(re.findall(r"^.*: Epoch 1 *$", done.stdout, re.MULTILINE)) == 1
    # Warm-up 2 of 4 steps, poly .9: the first steps of both epochs, each group by its own base rate.
    rates = [f"cnn {3e-3 * f:.3g}, transformer {9e-4 * f:.3g}" for f in (1 / 3, 0.5**0.9)]
    assert re.findall(r"Learning rates: (.*?) *$", done.stdout, re.MULTILINE) == rates
    (fold,) = (folders / "results").glob("Dataset001_Boxes/*/fold_0")
    assert "foreground_mean" in json.loads((fold / "validation" / "summary.json").read_text())

    model = zoo.create(fold / "recipe.yaml", pretrained=fold / "checkpoint_final.pth")  # whole
    assert model.class_names == ("background", "left", "right")
    labels = sorted((folders / "out").glob("*.nii.gz"))
    assert len(labels) == 6
    for path in labels:
        reference = nib.load(folders / "raw" / "Dataset001_Boxes" / "labelsTr" / path.name)
        assert np.allclose(nib.load(path).affine, reference.affine)
        assert nib.load(path).shape == reference.shape
        probabilities = np.load(path.with_name(path.name.replace(".nii.gz", ".npz")))["probabilities"]
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-3)
        assert probabilities.shape[0] == 3
        assert set(np.unique(nib.load(path).dataobj)) <= {0, 1, 2}
    state = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert state["trainer_name"] == NAME
    assert state["current_epoch"] == 2
    trained = sum(len(group["params"]) for group in state["optimizer_state"]["param_groups"])
    assert trained == sum(not name.startswith("neck.") for name, _ in model.named_parameters())
