"""Every program in examples/ runs from a fresh folder and prints what its docstring promises."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PRINTS = {
    "create_and_predict.py": "label map (1, 32, 40, 32)",
    "instances.py": "panoptic quality 0.",
    "lightning_module.py": "after 4 steps: loss",
    "loose_criterion.py": "gradient of the masks 0.",
    "loose_head.py": "log-probabilities (2, 3, 8, 32, 32)",
    "loose_matcher.py": "queries answer for objects [2, 0, 1, -1]",
    "loose_neck.py": "(1, 32, 4, 8, 8) enriched",
    "loose_op.py": "sampled (1, 5, 2, 6) within the values: True",
    "loose_parts.py": "step 2: loss",
    "monai_inference.py": "scores (1, 3, 40, 56, 36)",
    "plain_loop.py": "step 19: loss",
}
NEEDS = {"lightning_module.py": "lightning"}
LOOSE = ("head", "criterion", "matcher", "neck", "op")


def test_all_are_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("program", PRINTS)
def test_runs(program: str, tmp_path: Path) -> None:
    if program in NEEDS and importlib.util.find_spec(NEEDS[program]) is None:
        pytest.skip(f"{program} needs {NEEDS[program]}, which is not installed: pip install {NEEDS[program]}")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / program)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert PRINTS[program] in done.stdout
    assert not any(tmp_path.iterdir())


def test_loose_parts_learn(tmp_path: Path) -> None:
    """Three steps lower the loss, and the program stays short enough to be copied."""
    source = EXAMPLES / "loose_parts.py"
    printed = subprocess.run(
        [sys.executable, str(source)], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    losses = [float(line.split()[3]) for line in printed]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)
    assert len(source.read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.parametrize("part", LOOSE)
def test_loose_parts_are_short_and_need_nothing_of_recipes_or_the_runner(part: str) -> None:
    """About twenty lines after the docstring, and no import of what puts recipes, data and runs together."""
    source = (EXAMPLES / f"loose_{part}.py").read_text(encoding="utf-8")
    body = source.split('"""', 2)[2].strip().splitlines()
    assert len(body) <= 22
    imported = [line.split()[1] for line in body if line.startswith("from maskmed_zoo")]
    assert imported
    allowed = ("contracts", "heads", "losses", "necks", "ops")
    assert all(module.split(".")[1] in allowed for module in imported)
    printed = "import sys; before = set(sys.modules); import " + ", ".join(imported)
    printed += "; print(*sorted(m for m in set(sys.modules) - before if m.startswith('maskmed_zoo.')))"
    loaded = subprocess.run([sys.executable, "-c", printed], capture_output=True, text=True, check=True).stdout.split()
    assert loaded
    assert not [m for m in loaded if m.split(".")[1] in ("recipe", "registry", "runner", "data", "model", "build")]


def test_what_scripts_import_exists() -> None:
    """Benchmarks are too long to be run here; a name that has moved would stop them at their first lines."""
    scripts = [*(EXAMPLES.parent / "docs").rglob("*.py"), *EXAMPLES.rglob("*.py")]
    named = [
        (script.name, str(node.module), alias.name)
        for script in scripts
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "maskmed_zoo"
        for alias in node.names
    ]
    assert len(named) >= 60
    for script, module, name in named:
        found = importlib.import_module(module)
        is_module = importlib.util.find_spec(f"{module}.{name}") is not None if hasattr(found, "__path__") else False
        assert hasattr(found, name) or is_module, f"{script} imports {name} from {module}"
