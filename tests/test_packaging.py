"""The wheel is complete by itself: cards and recipes travel inside it and are found outside of any checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from maskmed_zoo.ops import native_build
from maskmed_zoo.recipe.own_copy import own_copy

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("maskmed_zoo", "registry", "recipes", "pyproject.toml", "README.md", "LICENSE")


def copy_source(folder: Path) -> Path:
    """What a wheel is made of, so that building it leaves nothing in the checkout."""
    for item in NEEDED:
        if (ROOT / item).is_dir():
            shutil.copytree(ROOT / item, folder / item, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / item, folder / item)
    return folder


def build_wheel(source: Path, out: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(copy_source(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index",
         "--target", str(target), str(wheel)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return target


def run(code_or_words: list[str], cwd: Path, path: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, *code_or_words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def relative(folder: str) -> set[str]:
    return {p.relative_to(ROOT / folder).as_posix() for p in (ROOT / folder).rglob("*.yaml")}


def test_wheel_holds_cards_and_recipes(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    for folder in ("registry", "recipes"):
        own = relative(folder)
        assert len(own) >= 13
        assert {f"maskmed_zoo/_{folder}/{name}" for name in own} <= inside
    assert "maskmed_zoo/py.typed" in inside
    tops = {name.split("/")[0] for name in inside}
    assert tops == {"maskmed_zoo", next(t for t in tops if t.endswith(".dist-info"))}
    assert not [name for name in inside if "__pycache__" in name]


def test_wheel_holds_the_compiled_op_where_there_is_a_compiler(wheel: Path, unpacked: Path, tmp_path: Path) -> None:
    compiled = sys.platform == "linux" and native_build.compiler() is not None
    assert ("py3-none-any" in wheel.name) != compiled
    code = "from maskmed_zoo.ops import native, native_build as b; print(b.SHIPPED.exists(), native.load()[1])"
    said = run(["-c", code], tmp_path, unpacked)
    assert said.startswith(f"{compiled} ")
    assert (str(unpacked) in said) == compiled
    assert (unpacked / "maskmed_zoo/ops/native.c").is_file()
    assert not list((ROOT / "maskmed_zoo").rglob("*.so"))


@pytest.fixture(params=["wheel", "checkout"])
def installed(request: pytest.FixtureRequest) -> Path:
    """Where the package is imported from."""
    return request.getfixturevalue("unpacked") if request.param == "wheel" else ROOT


def test_is_what_is_imported(installed: Path, tmp_path: Path) -> None:
    """Otherwise the tests below would look at another installation."""
    where = run(["-c", "import maskmed_zoo; print(maskmed_zoo.__file__)"], tmp_path, installed)
    assert Path(where.strip()).resolve().is_relative_to(installed.resolve())


def test_lists_every_card(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(run(["-m", "maskmed_zoo", "list", "--json"], tmp_path, installed))
    assert {card["name"] for card in listed} == {Path(name).stem for name in relative("registry")}


def test_builds_a_recipe(installed: Path, tmp_path: Path) -> None:
    facts = json.loads(run(["-m", "maskmed_zoo", "build", "maskmed_amos", "--json"], tmp_path, installed))
    assert facts["num_classes"] == 16
    assert facts["num_queries"] == 16
    assert len(facts["levels"]) == 6
    assert facts["total_parameters"] == sum(facts["parameters"].values())


def test_copies_a_recipe(installed: Path, tmp_path: Path) -> None:
    run(["-m", "maskmed_zoo", "copy", "maskmed_amos", "mine.yaml"], tmp_path, installed)
    text = (ROOT / "recipes/amos/maskmed_amos.yaml").read_text()
    assert (tmp_path / "mine.yaml").read_text() == own_copy(text, "mine.yaml")
