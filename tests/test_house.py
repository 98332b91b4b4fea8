"""The shape of the house: which way imports point, how long files are, what is never done, what stays light."""

from __future__ import annotations

import ast
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import VERBS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "maskmed_zoo"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each part of the package may import, besides itself and the ground. "root" is maskmed_zoo/__init__.py.
GROUND = {
    "errors",
    "files",
    "labels",
    "settings",
    "metric_settings",
    "device",
    "renamed",
    "version",
    "lock",
    "memory",
    "plain_yaml",
    "network_size",
    "arguments",
    "plugins",
    "distributed",
}
COMPONENT = {"contracts", "layers", "ops"}
RUN = {"registry", "contracts", "recipe", "model", "build", "weights"}
RUN |= {"data", "inference", "evaluation", "report"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "labels": set(),
    "settings": set(),
    "metric_settings": {"settings"},
    "distributed": set(),
    "device": {"arguments", "distributed"},
    "renamed": set(),
    "version": set(),
    "lock": set(),
    "memory": set(),
    "plain_yaml": {"files"},
    "network_size": {"memory"},
    "arguments": set(),
    "plugins": set(),
    "contracts": set(),
    "registry": {"contracts"},
    "ops": {"contracts"},
    "weights": {"registry"},
    "layers": {"contracts", "ops"},
    "adapters": {"contracts", "weights"},  # weights: the one reader of files of others
    "encoders": COMPONENT | {"adapters"},
    "necks": COMPONENT,
    "decoders": COMPONENT,
    "heads": COMPONENT,
    "losses": {"contracts"},
    "recipe": {"contracts", "registry"},
    "model": {"contracts", "registry", "recipe"},
    "attach": {"contracts", "registry", "adapters"},
    "build": {"contracts", "registry", "recipe", "model", "ops"},
    "data": {"contracts", "recipe"},
    "inference": {"contracts", "recipe", "model", "data"},
    "evaluation": {"data", "recipe"},
    "report": {"contracts"},
    "runner": RUN,
    "comparison": RUN | {"runner"},
    "postprocessing": RUN | {"runner"},
    "ablation": RUN | {"runner", "comparison"},
    "explain": RUN | {"layers", "runner"},
    "export": RUN | {"ops", "adapters", "runner"},
    "planning": RUN | {"encoders", "necks", "decoders", "heads", "layers", "runner"},
    "interop": {"contracts", "registry", "recipe", "model", "build", "runner", "weights"},
    "demo": RUN | {"runner"},
    "predicting": RUN | {"runner"},
    "scoring": RUN | {"runner", "comparison", "postprocessing"},
    "root": RUN | {"attach", "planning", "predicting", "runner", "scoring"},
    "cli": {"root", "registry", "recipe", "build", "weights", "data", "evaluation"}
    | {"runner", "comparison", "ablation", "explain", "export", "interop", "planning", "demo", "postprocessing"},
    "__main__": {"cli"},
}
HEAVY = {"torch", "numpy", "scipy", "monai", "timm", "nibabel", "pydantic", "matplotlib"}
HELP = """
import contextlib, io, json, sys
from maskmed_zoo.cli.main import VERBS, main

seen, new = set(sys.modules), {}
for words in [*([verb] for verb in VERBS), ["nnunet", "install"], ["data", "check"]]:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    assert printed.getvalue().startswith(f"usage: maskmed-zoo {' '.join(words)} ")
    new[" ".join(words)], seen = sorted(set(sys.modules) - seen), set(sys.modules)
print(json.dumps(new))
"""
SAFE_LOADING = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False", "numpy.load": "allow_pickle=False"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def part(module: str) -> str:
    """The part of the package a dotted name belongs to."""
    words = module.split(".")
    return words[1] if len(words) > 1 else "root"


def own_imports(path: Path) -> Iterator[str]:
    """Dotted names of this package's modules that a file imports, wherever in the file it does."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "maskmed_zoo")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            if node.module is None or node.module.split(".")[0] != "maskmed_zoo":
                continue
            for alias in node.names:
                inner = PACKAGE.parent / Path(*node.module.split(".")) / alias.name
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_imports_point_one_way() -> None:
    wrong: list[str] = []
    seen: set[tuple[str, str]] = set()
    for path in MODULES:
        first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        here = "root" if first == "__init__" else first
        assert here in ALLOWED, f"{name(path)}: a new part; say in ALLOWED what it may import"
        for target in own_imports(path):
            there = part(target)
            seen.add((here, there))
            if there not in ALLOWED[here] | {here} | (GROUND if here not in GROUND else {"errors"}):
                wrong.append(f"{name(path)} imports {target}")
    assert not wrong
    assert len(MODULES) >= 60
    assert {("cli", "runner"), ("runner", "build"), ("model", "recipe"), ("layers", "ops")} <= seen


def test_arrows_have_no_circle() -> None:
    order: list[str] = []
    left = {here: targets - {here} for here, targets in ALLOWED.items()}
    while left:
        free = [here for here, targets in left.items() if targets <= set(order)]
        assert free, f"a circle among {sorted(left)}"
        order += free
        left = {here: targets for here, targets in left.items() if here not in free}
    assert order.index("heads") < order.index("runner") < order.index("cli")


def test_files_are_short() -> None:
    ours = [p for folder in ("maskmed_zoo", "tests", "examples", "docs") for p in (ROOT / folder).rglob("*.py")]
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in ours}
    assert len(lengths) > len(MODULES) >= 60
    limits = {p: 500 if p.is_relative_to(ROOT / "tests") else 400 for p in lengths}
    assert {str(p): n for p, n in lengths.items() if n > limits[p]} == {}
    assert statistics.median(n for p, n in lengths.items() if p in MODULES and n) <= 130


def called(node: ast.AST) -> str:
    """`a.b` of a call `a.b(…)`, or an empty string."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def test_package_never_does_this() -> None:
    wrong: list[str] = []
    for path in MODULES:
        for node in ast.walk(tree(path)):
            where = f"{name(path)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Assert):
                wrong.append(f"{where}: assert")
            if called(node) in {"print", "eval", "exec", "compile", "os.getenv", "pickle.load", "pickle.loads"}:
                wrong.append(f"{where}: {called(node)}")
            if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in {"os.environ", "environ"}:
                wrong.append(f"{where}: settings come from recipes and options, not from the environment")
            flag = SAFE_LOADING.get(called(node))
            if flag and isinstance(node, ast.Call) and flag not in [ast.unparse(k) for k in node.keywords]:
                wrong.append(f"{where}: {called(node)} without {flag}")
    assert not wrong


def test_the_search_above_finds_what_it_looks_for() -> None:
    """Calls are recognised at all: the package loads a checkpoint and arrays somewhere."""
    calls = {called(node) for path in MODULES for node in ast.walk(tree(path))}
    assert {"torch.load", "np.load", "torch.save"} <= calls


def test_heads_and_necks_never_see_labels_or_losses() -> None:
    for folder in ("heads", "necks", "decoders", "encoders"):
        files = sorted((PACKAGE / folder).glob("*.py"))
        assert len(files) >= 2
        for path in files:
            assert not [t for t in own_imports(path) if part(t) in {"losses", "data", "runner", "model"}], path
            for node in ast.walk(tree(path)):
                if isinstance(node, ast.FunctionDef) and node.name == "forward":
                    assert not {a.arg for a in node.args.args} & {"labels", "target", "targets", "loss"}, path


@pytest.mark.parametrize(
    "words",
    [("-c", "import maskmed_zoo"), *(("-m", "maskmed_zoo", *w) for w in (
        ("--help",), ("--version",), ("list",), ("list", "--json"), ("describe", "fsad"), ("describe", "fsad", "--json")
    ))],
    ids=" ".join,
)  # fmt: skip
def test_stays_light(words: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    imported = set(re.findall(r"\|\s+([\w.]+)$", done.stderr, re.MULTILINE))
    assert done.returncode == 0, done.stderr
    assert "maskmed_zoo" in imported
    assert not imported & HEAVY


def test_help_stays_light(tmp_path: Path) -> None:
    """Of every command, one after the other in one process; what an earlier one imported does not count for a later."""
    done = subprocess.run([sys.executable, "-c", HELP], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stdout)
    assert len(imported) == len(VERBS) + 2
    assert {f"maskmed_zoo.cli.{verb}" for verb in VERBS} <= {module for new in imported.values() for module in new}
    assert {verb: sorted(HEAVY & set(new)) for verb, new in imported.items() if HEAVY & set(new)} == {}


def test_create_imports_no_compiler(tmp_path: Path) -> None:
    code = "import sys, maskmed_zoo as z; z.create('maskmed_hippocampus_cpu'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert {"torch", "maskmed_zoo.ops.registration"} <= imported
    assert not imported & {"torch._dynamo", "triton", "torch.utils.flop_counter"}


def test_every_verb_is_a_module() -> None:
    modules = {p.stem for p in (PACKAGE / "cli").glob("*.py")} - {"__init__", "main", "output"}
    assert modules == set(VERBS)


@pytest.mark.parametrize("words", [("check", "--output-format", "concise"), ("format", "--check")], ids="-".join)
def test_ruff(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words, "."], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright() -> None:
    """Package and tests, for the interpreter that runs this, by the node of `pyright[nodejs]`, without the network."""
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable], cwd=ROOT, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_version() -> None:
    """That of the package, which pyproject.toml takes, is also that of the citation and of the newest release."""
    changes = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited == changes[:1] == [zoo.__version__]
