"""The example plug-in: installed beside the zoo it is listed, described and built; a name taken twice is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(p) for p in (site, also) if p)}
    return subprocess.run(
        [sys.executable, "-m", "maskmed_zoo", *words], cwd=site, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_is_listed_without_being_imported(site: Path) -> None:
    done = zoo("list", "--json", "--kind", "neck", site=site)
    assert done.returncode == 0, done.stderr
    assert {"fsad", "gaussian", "skip"} <= {card["name"] for card in json.loads(done.stdout)}
    code = "import sys, maskmed_zoo as z; z.list(); print([m for m in sys.modules if 'gaussian' in m or m == 'torch'])"
    environment = os.environ | {"PYTHONPATH": str(site)}
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


def test_a_name_taken_twice_is_refused(site: Path, tmp_path: Path) -> None:
    package = tmp_path / "second_package"
    (package / "registry/heads").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "registry/heads/gaussian.yaml").write_text("summary: a head\ntarget: second_package:Head\n")
    meta = tmp_path / "second_package-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: second-package\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text("[maskmed_zoo.components]\nsecond = second_package\n")
    done = zoo("list", site=site, also=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "the name 'gaussian' is registered twice" in done.stderr
    assert "rename one" in done.stderr


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
