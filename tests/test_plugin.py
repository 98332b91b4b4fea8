"""Plug-ins: the example is listed, described and built; one that is broken is left out, with one warning."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maskmed_zoo import registry
from maskmed_zoo.errors import RegistryError

PLUGIN = Path(__file__).resolve().parent.parent / "examples/plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plug-in installed in it. The source is copied: a build leaves nothing in the checkout."""
    source = tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(PLUGIN, source)
    target = tmp_path_factory.mktemp("site")
    install(source, target)
    return target


def install(source: Path, target: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "--no-index", "--target", str(target), str(source)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip


def zoo(*words: str, site: Path, also: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`maskmed-zoo WORDS` with `site` (and `also`) on the path, elsewhere than in the checkout."""
    inherited = os.environ.get("PYTHONPATH")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(p) for p in (site, also, inherited) if p)}
    return subprocess.run(
        [sys.executable, "-m", "maskmed_zoo", *words], cwd=site, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_is_listed_without_being_imported(site: Path) -> None:
    done = zoo("list", "--json", "--kind", "neck", site=site)
    assert done.returncode == 0, done.stderr
    assert {"fsad", "gaussian", "skip"} <= {card["name"] for card in json.loads(done.stdout)}
    code = "import sys, maskmed_zoo as z; z.list(); print([m for m in sys.modules if 'gaussian' in m or m == 'torch'])"
    inherited = os.environ.get("PYTHONPATH", "")
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{inherited}"}
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=site, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "[]"


def test_is_described(site: Path) -> None:
    done = zoo("describe", "gaussian", "--json", site=site)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"] == "maskmed_zoo_gaussian_neck.neck:GaussianNeck"


def test_its_recipe_builds(site: Path) -> None:
    done = zoo("build", str(PLUGIN / "gaussian_hippocampus.yaml"), "--json", site=site)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["components"]["neck"] == "gaussian"
    assert facts["parameters"]["neck"] == len(facts["levels"])


def test_is_unknown_without_the_plugin(tmp_path: Path) -> None:
    done = zoo("build", str(PLUGIN / "gaussian_hippocampus.yaml"), site=tmp_path)
    assert done.returncode == 2
    assert "'gaussian' is not one of" in done.stderr


GOOD = "summary: a neck\ntarget: bad_plugin.neck:Neck\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BROKEN = {
    "no package": ({}, "bad_plugin", "no package with a registry/ folder"),
    "no registry": ({"bad_plugin/__init__.py": ""}, "bad_plugin", "no package with a registry/ folder"),
    "no name of a package": ({}, "../../etc", "no package with a registry/ folder"),
    "with an attribute": ({"bad_plugin/registry/necks/a.yaml": GOOD}, "bad_plugin:x", "no package"),
    "a name of ours": ({"bad_plugin/registry/heads/fsad.yaml": GOOD}, "bad_plugin", "'fsad' is registered twice"),
    "twice": (
        {"bad_plugin/registry/heads/a.yaml": GOOD, "bad_plugin/registry/necks/a.yaml": GOOD},
        "bad_plugin",
        "'a' is registered twice",
    ),
    "a missing fact": ({"bad_plugin/registry/necks/a.yaml": "summary: x"}, "bad_plugin", "needs 'summary' and"),
    "no YAML": ({"bad_plugin/registry/necks/a.yaml": "summary: [x"}, "bad_plugin", "cannot be read"),
    "no text": ({"bad_plugin/registry/necks/a.yaml": "summary: \x1b[31m\0"}, "bad_plugin", "cannot be read"),
    "a bomb": ({"bad_plugin/registry/necks/a.yaml": GOOD + BOMB}, "bad_plugin", "more than 50000 values"),
    "a tag": ({"bad_plugin/registry/necks/a.yaml": GOOD + "paper: !!binary aGk="}, "bad_plugin", "tag '"),
    "a date": ({"bad_plugin/registry/necks/a.yaml": GOOD + "paper: 2026-01-01"}, "bad_plugin", "a card holds"),
    "its own list": ({"bad_plugin/registry/necks/a.yaml": GOOD + "needs: &n [*n]"}, "bad_plugin", "a card holds"),
    "deep": ({"bad_plugin/registry/necks/a.yaml": GOOD + "needs: " + "[" * 500}, "bad_plugin", "nested more than 64"),
    "large": ({"bad_plugin/registry/necks/a.yaml": GOOD + "#" * 300_000}, "bad_plugin", "more than 262144 bytes"),
    "no target": (
        {"bad_plugin/registry/necks/a.yaml": "summary: x\ntarget: os.system"},
        "bad_plugin",
        "'module:Class'",
    ),
    "up and out": (
        {"bad_plugin/registry/models/a.yaml": "summary: x\nrecipe: ../../../etc/passwd"},
        "bad_plugin",
        "a path inside the recipes folder",
    ),
    "a strange name": ({"bad_plugin/registry/necks/a\x1b b.yaml": GOOD}, "bad_plugin", "a\\x1b b.yaml"),
    "broken metadata": ({}, None, "entry points cannot be read"),
}


def installed(site: Path, files: dict[str, str], package: str | None, name: str = "bad-plugin") -> None:
    """A distribution of these files whose entry point names the package; None: nobody can read which."""
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(content, encoding="utf-8")
    meta = site / f"{name.replace('-', '_')}-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    point = "no equals sign" if package is None else f"it = {package}"
    (meta / "entry_points.txt").write_text(f"[maskmed_zoo.components]\n{point}\n")


def listed(monkeypatch: pytest.MonkeyPatch, site: Path) -> list[str]:
    """Names that a new process with this folder on its path would list."""
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(registry, "_REGISTRY", registry._Registry())
    return registry.names()


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_one_is_left_out(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = registry.names()
    files, package, message = BROKEN[fault]
    installed(tmp_path, files, package)
    assert listed(monkeypatch, tmp_path) == before
    (record,) = caplog.records
    line = record.getMessage()
    assert "bad-plugin" in line
    assert message in line
    assert line.isprintable()
    assert registry.names() == before
    assert len(caplog.records) == 1, "said once"


def test_nothing_is_imported_for_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loud = "raise SystemExit('imported')"
    files = {"loud/__init__.py": loud, "loud/inner/__init__.py": loud}
    card = {"loud/inner/registry/necks/inner_neck.yaml": "summary: a neck\ntarget: loud.inner.neck:Neck\n"}
    installed(tmp_path, files | card, "loud.inner")
    assert "inner_neck" in listed(monkeypatch, tmp_path)
    with pytest.raises(RegistryError, match=r"'loud\.inner\.neck:Neck' cannot be imported: imported"):
        registry.component("inner_neck")


def test_a_class_that_cannot_be_imported_disables_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = registry.names("neck")
    installed(tmp_path, {"bad_plugin/registry/necks/a.yaml": GOOD, "bad_plugin/neck.py": "1 / 0"}, "bad_plugin")
    assert "a" in listed(monkeypatch, tmp_path)
    assert len(registry.components("neck")) == len(before)
    assert [record.getMessage().count("division by zero") for record in caplog.records] == [1]
    assert registry.names("neck") == before


def test_folders_are_no_links_out_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere" / "necks").mkdir(parents=True)
    (tmp_path / "elsewhere" / "necks" / "a.yaml").write_text(GOOD)
    installed(tmp_path, {"bad_plugin/__init__.py": ""}, "bad_plugin")
    (tmp_path / "bad_plugin" / "registry").symlink_to(tmp_path / "elsewhere")
    assert "a" not in listed(monkeypatch, tmp_path)
    assert "is a link out of its package" in caplog.text


def test_the_first_of_two_of_one_name_is_kept(site: Path, tmp_path: Path) -> None:
    card = {"second/registry/heads/gaussian.yaml": "summary: a head\ntarget: second:Head\n"}
    installed(tmp_path, card, "second", name="second-package")
    done = zoo("list", "gaussian", "--json", site=site, also=tmp_path)
    assert done.returncode == 0
    assert [each["kind"] for each in json.loads(done.stdout)] == ["neck"]
    (line,) = done.stderr.splitlines()
    assert "plug-in second-package is left out: the name 'gaussian' is registered twice" in line
    assert "rename one" in line


def test_the_neck_does_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Identity at first; a constant stays; an impulse spreads by sigma mm along thick and thin axes alike."""
    import importlib

    import torch

    from maskmed_zoo.contracts import FeatureSpec

    monkeypatch.syspath_prepend(PLUGIN)
    module = importlib.import_module("maskmed_zoo_gaussian_neck.neck")
    spacing = (2.0, 1.0, 1.0)
    config, spec = module.GaussianConfig(sigma=3.0), FeatureSpec((2,), ((1, 1, 1),))
    neck = module.GaussianNeck(in_spec=spec, spacing=spacing, config=config)
    x = torch.randn(1, 2, 21, 41, 41)
    assert torch.equal(neck([x])[0], x)
    with torch.no_grad():
        neck.amount.fill_(1.0)
    assert torch.allclose(neck([torch.full_like(x, 5.0)])[0], torch.full_like(x, 5.0), atol=1e-5)
    impulse = torch.zeros_like(x)
    impulse[:, :, 10, 20, 20] = 1.0
    spread = neck([impulse])[0][0, 0]
    for axis, mm in enumerate(spacing):
        profile = spread.sum([a for a in range(3) if a != axis])
        offsets = (torch.arange(len(profile)) - len(profile) // 2) * mm
        assert (profile * offsets**2).sum().sqrt().item() == pytest.approx(3.0, rel=0.05)
    neck([x])[0].sum().backward()
    assert neck.amount.grad is not None
