"""The wheel in a bare environment: with what pip brings from the package index and nothing of the test tools, it works.

About 6 GB of disk while it runs, most of it torch and CUDA's libraries.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TINY, make_dataset
from tests.test_packaging import build_wheel, copy_source


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of programs of a new environment that holds the wheel, without extras, and what it depends on."""
    wheel = build_wheel(copy_source(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("wheel"))
    environment = tmp_path_factory.mktemp("environment") / "bare"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    installed = subprocess.run(
        [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    yield programs
    shutil.rmtree(environment)  # pytest keeps the folders of three runs


def run(programs: Path, *words: str, cwd: Path) -> str:
    """What the installed command prints, started outside of the checkout."""
    done = subprocess.run(
        [programs / "maskmed-zoo", *words], cwd=cwd, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lists_and_builds(programs: Path, tmp_path: Path) -> None:
    assert "maskmed_amos" in run(programs, "list", cwd=tmp_path)
    facts = json.loads(run(programs, "build", "maskmed_amos", "--json", cwd=tmp_path))
    assert facts["num_classes"] == facts["num_queries"] == 16


def test_trains_two_steps(programs: Path, tmp_path: Path) -> None:
    recipe, data = tmp_path / "tiny.yaml", make_dataset(tmp_path / "Dataset001_Boxes")
    recipe.write_text(TINY, encoding="utf-8")
    short = ("--set", "train.epochs=1", "--set", "train.iterations_per_epoch=2")
    where = ("--data", str(data), "--out", "run", "--device", "cpu")
    run(programs, "train", str(recipe), *short, *where, cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert (tmp_path / "run" / "predictions" / "case_00.nii.gz").is_file()
