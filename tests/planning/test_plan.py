"""`plan` as a person meets it: a recipe with reasons that trains as it is, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import main
from maskmed_zoo.contracts import PlannedLevels
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.data.fingerprint import fingerprint_dataset
from maskmed_zoo.encoders.timm import TimmConfig
from maskmed_zoo.errors import DataError, JointError, UserError
from maskmed_zoo.planning.budget import Budget
from maskmed_zoo.planning.choose import Choice, choose
from maskmed_zoo.planning.grid import Grid
from maskmed_zoo.planning.reasons import _levels  # pyright: ignore[reportPrivateUsage]
from tests.conftest import SHARED_DATA, make_dataset

PLANNED = ("spacing", "patch_size", "normalization", "use_mask_for_norm", "mirror_axes")


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "boxes")


def test_a_plan_trains_as_it_is(
    boxes: Path, tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output holds the recipe alone; each planned number has its reason above it."""
    assert main(["plan", str(boxes), "--recipe", str(tiny_recipe), "--memory", "300M"]) == 0
    printed = capsys.readouterr()
    mine = tmp_path / "mine.yaml"
    mine.write_text(printed.out, encoding="utf-8")
    recipe = zoo.load_recipe(mine)
    assert recipe.name == "Boxes"
    assert recipe.data.spacing == (2.0, 1.0, 1.0)
    assert recipe.data.patch_size == (10, 20, 20)
    assert recipe.data.mirror_axes == ("z", "y")
    assert recipe.data.normalization == ("ct",)
    assert dict(recipe.labels) == {"background": 0, "left": 1, "right": 2}
    assert printed.err.splitlines() == ["measuring cases of Boxes: 4", "planning for 300 MiB of memory (as asked)"]
    lines = printed.out.splitlines()
    for key in (*PLANNED, "strides", "kernels", "channels", "batch_size", "query_levels"):
        at = next(index for index, line in enumerate(lines) if line.strip().startswith(f"{key}: "))
        assert lines[at - 1].strip().startswith("# "), key
    out = tmp_path / "runs/mine"
    steps = (
        "--set",
        "train.epochs=1",
        "--set",
        "train.iterations_per_epoch=1",
        "--set",
        "train.validation_iterations=1",
    )
    assert main(["train", str(mine), "--data", str(boxes), "--out", str(out), *steps]) == 0
    assert (out / "evaluation.json").is_file()


def test_plan_in_python(boxes: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    found = zoo.plan(boxes, recipe=tiny_recipe, memory="300M")
    (tmp_path / "p.yaml").write_text(str(found), encoding="utf-8")
    assert zoo.load_recipe(tmp_path / "p.yaml") == found.recipe
    assert "left" in found.comments["data.mirror_axes"]
    assert 0 < found.bytes < 300 * 2**20


def test_out_is_never_replaced(
    boxes: Path, tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "mine.yaml"
    words = ["plan", str(boxes), "--recipe", str(tiny_recipe), "--memory", "300M", "--out", str(target)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert f"train {target} --data" in target.read_text(encoding="utf-8")
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "mine.txt")]) == 2
    assert "ends in .yaml" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "none/mine.yaml")]) == 2
    told = capsys.readouterr().err
    assert "no folder" in told
    assert "measuring" not in told


def test_a_budget_too_small_is_told_with_numbers(boxes: Path, tiny_recipe: Path) -> None:
    with pytest.raises(
        UserError, match=r"memory: 0.0977 MiB \(as asked\) is too little: the smallest .* needs 0.71 MiB"
    ):
        zoo.plan(boxes, recipe=tiny_recipe, memory="100K")
    assert zoo.plan(boxes, recipe=tiny_recipe, memory="0.71MiB").bytes
    with pytest.raises(UserError, match=r"0.0977 MiB \(as asked\) is too little: .* needs .* MiB for a batch of 2"):
        zoo.plan(boxes, recipe="pointwise_amos", memory="100K")


def test_images_too_small_are_refused(tiny_recipe: Path) -> None:
    with pytest.raises(DataError, match="too small for two levels"):
        choose(zoo.load_recipe(tiny_recipe), Grid((1, 1, 1), (5, 6, 7), None, 3), Budget(2**30, "", narrow=False))


def test_labels_of_one_side_let_x_be_mirrored_and_a_cut_out_head_is_masked(tiny_recipe: Path, tmp_path: Path) -> None:
    """nnU-Net's threshold: below three quarters of the voxels left by the crop, z-scores are the region's."""
    import nibabel as nib
    import numpy as np

    root = make_dataset(tmp_path / "boxes")
    description = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    description |= {"channel_names": {"0": "T1"}, "labels": {"background": 0, "core": 1, "rim": 2}, "name": "Kopf 1/é"}
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    for path in (root / "imagesTr").iterdir():
        image = nib.loadsave.load(path)
        array = np.asanyarray(image.dataobj).copy()  # pyright: ignore
        array[: len(array) // 2] = 0
        nib.loadsave.save(nib.Nifti1Image(array, image.affine), path)  # pyright: ignore
    found = zoo.plan(root, recipe=tiny_recipe, memory="300M")
    assert fingerprint_dataset(open_dataset(root)).median_relative_size == 0.5
    assert found.recipe.data.use_mask_for_norm
    assert found.recipe.data.normalization == ("zscore",)
    assert found.recipe.data.mirror_axes == ("z", "y", "x")
    assert found.recipe.name == "Kopf_1__"


def test_an_encoder_with_strides_of_its_own() -> None:
    """A patch is a multiple of them, and the table of positions is made for it."""
    grid = Grid((4.0, 1.0, 1.0), (40.0, 130.0, 150.0), 0, 50)
    settings = {"model.encoder.width": 48, "data.spacing": [4.0, 1.0, 1.0]}
    budget = Budget(2**29, "as asked", narrow=False)
    planned = choose(zoo.load_recipe("unetr_amos", settings), grid, budget)
    patch = planned.recipe.data.patch_size
    assert all(side % 16 == 0 for side in patch)
    assert max(patch) < 150
    assert planned.bytes <= budget.bytes
    assert planned.recipe.model.encoder.model_dump()["img_size"] == patch


def test_a_backbone_is_told_which_axis_is_thick() -> None:
    strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    levels = PlannedLevels(strides, ((3, 3, 3),) * 4, (64, 64, 64), (4.0, 1.0, 1.0))
    assert TimmConfig().fitted(levels).z_factors == (1, 1, 2)
    assert TimmConfig(mode="slices").fitted(levels) == TimmConfig(mode="slices")
    even = PlannedLevels(((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2, (64, 64, 64), (1.0, 1.0, 1.0))
    assert TimmConfig().fitted(even) == TimmConfig()


@pytest.mark.parametrize(("z_factors", "z_mm", "is_said"), [((1, 1, 2, 2, 2), 4.0, True), (None, 1.0, False)])
def test_z_is_called_thick_where_it_is(z_factors: tuple[int, ...] | None, z_mm: float, is_said: bool) -> None:
    encoder = {"kind": "timm", "z_factors": z_factors}
    recipe = zoo.load_recipe("maskmed_amos", {"model.encoder": encoder, "model.decoder.kernels": None})
    levels = PlannedLevels(((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2, (32, 64, 64), (z_mm, 1, 1))
    grid = Grid((z_mm, 1, 1), (32, 64, 64), None, 3)
    found = _levels(Choice(recipe, levels, "", "", 1, None), grid)
    assert ("model.encoder.z_factors" in found) == is_said


def test_parts_that_do_not_fit_are_named(tiny_recipe: Path) -> None:
    recipe = zoo.load_recipe(tiny_recipe, {"model.decoder.blocks": [1, 1, 1]})
    planned = choose(recipe, Grid((1, 1, 1), (20, 20, 20), None, 9), Budget(2**30, "", narrow=False))
    assert planned.recipe.model.decoder.model_dump()["blocks"] == (1,) * (len(planned.levels.strides) - 1)
    with pytest.raises(JointError, match="set_criterion"):
        choose(
            zoo.load_recipe(tiny_recipe, {"model.head.kind": "pointwise"}),
            Grid((1, 1, 1), (20, 20, 20), None, 9),
            Budget(2**30, "", narrow=False),
        )


@pytest.mark.skipif(not (SHARED_DATA / "Dataset004_Hippocampus").is_dir(), reason="no real data")
def test_real_data_have_nnunets_patch() -> None:
    """40 x 56 x 40 is nnU-Net's published patch for the hippocampus."""
    found = zoo.plan(SHARED_DATA / "Dataset004_Hippocampus", recipe="pointwise_amos", memory="8G")
    assert found.recipe.data.patch_size == (40, 56, 40)
    assert found.recipe.data.spacing == (1, 1, 1)
