"""What README, CONTRIBUTING and the pages show is true: their Python runs, their commands work, their excerpts exist.

Python blocks of a file run in order in one namespace, in a process of their own. In bash blocks the commands that only
read (list, describe, validate, schema, copy, build) run in order in an empty folder; the others must parse.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from maskmed_zoo.cli.main import VERBS, main

ROOT = Path(__file__).resolve().parent.parent
BUILT = ("_build", "generated")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/plugin/README.md")),
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if not set(BUILT) & set(p.relative_to(ROOT).parts)),
]
PLUGIN = ROOT / "examples/plugin/maskmed_zoo_gaussian_neck"
RUNS = ("list", "describe", "validate", "schema", "copy", "build")
DRIVER = """
import json, sys
for line, source in json.load(sys.stdin):
    exec(compile("\\n" * line + source, sys.argv[1], "exec"), globals())
"""


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """First line (from 0) and text of every fenced block of a language."""
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in pattern.finditer(text)]


def commands(page: Path) -> list[list[str]]:
    """The words of every `maskmed-zoo …` line in bash blocks."""
    lines = "\n".join(text for _, text in blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("maskmed-zoo ")]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, name(page)], input=json.dumps(blocks(page, "python")), cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# The plug-in's README speaks of a component that is not installed here; tests/test_plugin.py runs those commands.
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p) and "plugin" not in p.parts], ids=name)
def test_commands_work(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        arguments, target = (words[:-2], words[-1]) if ">" in words else (words, None)
        if words[0] not in RUNS:
            parser = argparse.ArgumentParser(exit_on_error=False)
            importlib.import_module(f"maskmed_zoo.cli.{words[0]}").configure(parser)
            parser.parse_args(arguments[1:])
            continue
        code = main(arguments)
        printed = capsys.readouterr()
        assert code == 0, f"maskmed-zoo {shlex.join(words)}: {printed.err}"
        if target:
            Path(target).write_text(printed.out, encoding="utf-8")


def test_what_is_found() -> None:
    """The two tests above see something: a change of fences or names must not empty them."""
    assert len(blocks(ROOT / "README.md", "python")) >= 1
    assert len(blocks(ROOT / "CONTRIBUTING.md", "python")) >= 2
    shown = {words[0] for page in PAGES for words in commands(page)}
    assert shown >= set(VERBS), f"no page shows {set(VERBS) - shown}"
    assert len(PAGES) >= 15


def test_recipe_in_readme_is_an_excerpt() -> None:
    recipe = (ROOT / "recipes/hippocampus/maskmed_hippocampus_cpu.yaml").read_text(encoding="utf-8")
    excerpts = [text for _, text in blocks(ROOT / "README.md", "yaml")]
    assert len(excerpts) == 1
    assert excerpts[0] in recipe


def test_component_table_in_readme_is_complete() -> None:
    import maskmed_zoo as zoo

    rows = re.findall(r"^\| (\w+) \| `(\w+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    kinds = ("encoder", "neck", "decoder", "head", "loss")
    cards = [(kind, component) for kind in kinds for component in zoo.list(kind=kind)]
    assert sorted(rows) == sorted(cards)


def test_example_in_contributing_is_the_plugin() -> None:
    page = ROOT / "CONTRIBUTING.md"
    code, card = blocks(page, "python")[0][1], blocks(page, "yaml")[0][1]
    assert code == (PLUGIN / "neck.py").read_text(encoding="utf-8")
    own = card.replace("maskmed_zoo.necks.gaussian:", "maskmed_zoo_gaussian_neck.neck:")
    assert own == (PLUGIN / "registry/necks/gaussian.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links and pictures, outside of comments."""
    text = re.sub(r"<!--.*?-->|^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target
