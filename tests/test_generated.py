"""What docs/ makes from the code: the pages of the command line and of the metrics, and README's table of components.

And the promise of CONTRIBUTING that hangs on it: a component of this repository is two files and one command.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from maskmed_zoo.cli.main import VERBS, main
from maskmed_zoo.evaluation.metrics import metrics

ROOT = Path(__file__).resolve().parent.parent
TREE = ("maskmed_zoo", "registry", "recipes", "tests", "docs", "README.md", "CONTRIBUTING.md", "pyproject.toml")
PLUGIN = ROOT / "examples/plugin/maskmed_zoo_gaussian_neck"
README_TEST = "tests/test_generated.py::test_component_table_in_readme_is_that_of_the_cards"
PYTEST = ("-m", "pytest", "-rA", "-p", "no:cacheprovider")
COMMANDS = [*((verb,) for verb in VERBS), ("nnunet", "install"), ("data", "check")]


def script(name: str) -> ModuleType:
    """A file of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def part(page: str, verb: str) -> str:
    """The generated lines of one command."""
    return page.partition(f"<!-- {verb} -->")[2].partition(f"<!-- end of {verb} -->")[0]


def test_every_command_and_every_argument_is_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """As `--help` prints them, with the words of their help."""
    page, seen = script("commands").page(), 0
    for words in COMMANDS:
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        text = capsys.readouterr().out
        usage, described = text.partition("\n\n")[0], text.partition("\n\n")[2]
        found = part(page, words[0])
        assert f"`maskmed-zoo {' '.join(words)}" in found
        names = re.findall(r"^  (--[a-z0-9-]+|[A-Z][A-Z,/]*)(?= )", described, re.MULTILINE)
        assert set(re.findall(r"--[a-z0-9-]+", usage)) <= set(names)
        for name in set(names) - {"--help", "ACTION"}:
            assert re.search(rf"^`\[?{re.escape(name)}[^`\n]*`\n: \S", found, re.MULTILINE), f"{words}: {name}"
            seen += 1
    assert seen >= 60
    assert "%(" not in page


def test_the_page_of_the_command_line_includes_every_command_and_repeats_no_option() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    sections = dict(zip(*[iter(re.split(r"^## (.*)\n", page, flags=re.MULTILINE)[1:])] * 2, strict=True))
    assert list(sections) == list(VERBS)
    for verb, text in sections.items():
        include = (
            f"\n```{{include}} generated/cli.md\n:start-after: <!-- {verb} -->\n:end-before: <!-- end of {verb} -->"
        )
        assert text.startswith(include), verb
        assert "\n: " not in text, verb


def test_every_metric_is_on_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it declares, in a page that the documentation includes."""
    monkeypatch.syspath_prepend(ROOT / "docs")  # where `generate` finds the other script
    page = script("generate").metrics_page()
    assert set(re.findall(r"^## `(\w+)`$", page, re.MULTILINE)) == set(metrics()) >= {"dice"}
    for metric in metrics().values():
        assert all(words in page for words in (metric.title, metric.definition, metric.rules()))
    assert "{include} generated/metrics.md" in (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
    assert "reference/metrics\n" in (ROOT / "docs/index.md").read_text(encoding="utf-8")


def test_component_table_in_readme_is_that_of_the_cards() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    renewed = script("readme").renewed(text)
    assert text == renewed, "README.md: the table of components is not that of the cards; run: python docs/readme.py"
    assert len(re.findall(r"^\| \w+ \| `\w+` \|", renewed, re.MULTILINE)) >= 20


def test_a_table_without_its_marks_is_told() -> None:
    with pytest.raises(SystemExit, match=r"README\.md: expected a line '<!-- components"):
        script("readme").renewed("# no table")


def run(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python in a copy of the repository, with the package of that copy."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )


def test_a_component_in_this_repository_is_two_files_and_one_command(tmp_path: Path) -> None:
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "_build", "generated", "images", "benchmarks")
            shutil.copytree(source, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(source, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    card = (PLUGIN / "registry/necks/gaussian.yaml").read_text(encoding="utf-8")
    inside = card.replace("maskmed_zoo_gaussian_neck.neck:", "maskmed_zoo.necks.gaussian:")
    assert inside != card
    shutil.copy(PLUGIN / "neck.py", tmp_path / "maskmed_zoo/necks/gaussian.py")
    (tmp_path / "registry/necks/gaussian.yaml").write_text(inside, encoding="utf-8")

    done = run(tmp_path, *PYTEST, "--noconftest", README_TEST)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "run: python docs/readme.py" in done.stdout
    done = run(tmp_path, "docs/readme.py")
    assert done.returncode == 0, done.stderr
    done = run(tmp_path, *PYTEST, "--noconftest", README_TEST)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(tmp_path, *PYTEST, "tests/contracts/test_components.py", "-k", "gaussian or (card and neck)")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^PASSED .*\[.*gaussian", done.stdout, re.MULTILINE)) >= 12
    for check in ("test_every_card_has_code_and_every_component_a_card", "test_cards_hold_the_facts"):
        assert f"PASSED tests/contracts/test_components.py::{check}[neck]" in done.stdout

    changed = [path for path, content in before.items() if path.read_bytes() != content]
    assert changed == [tmp_path / "README.md"]
    assert "| neck | `gaussian` | skip connections blended with" in changed[0].read_text(encoding="utf-8")
