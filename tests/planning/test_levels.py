"""Patch, levels and spacing against nnU-Net's own functions, on seeded random grids."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from maskmed_zoo.planning.grid import grid_of
from maskmed_zoo.planning.levels import Order, kernels_along, levels_of, multiples, shrinking, total_stride


def test_levels_are_nnunets() -> None:
    generator, seen = np.random.default_rng(0), set[int]()
    for _ in range(300):
        spacing = tuple(np.exp(generator.normal(0, 0.8, 3)).tolist())
        patch = (generator.integers(5, 400, 3) / generator.choice([1, 2])).tolist()
        _, strides, kernels, padded, divisor = get_pool_and_conv_props(spacing, patch, 4, 999999)
        mine = levels_of(spacing, patch)
        assert (mine.strides, mine.kernels, mine.patch) == (strides, kernels, tuple(padded))
        assert total_stride(mine.strides) == tuple(divisor)
        assert kernels_along(spacing, mine.strides) == kernels
        seen.add(len(strides))
    assert len(seen) >= 5


def test_spacing_is_nnunets() -> None:
    generator, thick = np.random.default_rng(1), 0
    for _ in range(100):
        scale = generator.choice([1, 1, 4, 6])
        spacings = (np.exp(generator.normal(0, 0.3, (9, 3))) * [scale, 1, 1])[:, generator.permutation(3)]
        shapes = generator.integers(20, 300, (9, 3)) // np.where(spacings > 3, 5, 1)
        fingerprint = {"spacings": spacings.tolist(), "shapes_after_crop": shapes.tolist()}
        planner = SimpleNamespace(
            overwrite_target_spacing=None, dataset_fingerprint=fingerprint, anisotropy_threshold=3
        )
        wanted = ExperimentPlanner.determine_fullres_target_spacing(planner)  # pyright: ignore[reportArgumentType]
        grid = grid_of([tuple(row) for row in spacings.tolist()], [tuple(row) for row in shapes.tolist()])
        assert grid.spacing == tuple(wanted.tolist())
        thick += grid.thick is not None
    assert 10 < thick < 90


def test_patches_shrink_and_can_be_divided() -> None:
    generator = np.random.default_rng(2)
    for _ in range(40):
        spacing = tuple(np.exp(generator.normal(0, 0.7, 3)).tolist())
        median = tuple(generator.integers(20, 300, 3).tolist())
        for found in (
            list(shrinking(spacing, median)),
            list(multiples(spacing, median, ((1, 1, 1), (1, 2, 2), (2, 8, 8)))),
        ):
            assert found
            sizes = [np.prod(levels.patch) for levels in found]
            assert sizes == sorted(sizes, reverse=True)
            assert len(set(sizes)) == len(sizes)
            for levels in found:
                coarsest = np.array(levels.patch) / total_stride(levels.strides)
                assert (coarsest == coarsest.astype(int)).all()
                assert coarsest.prod() >= 2


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 5.0, 1.0), (0.5, 2.0, 2.0), (1.0, 1.0, 3.0)])
def test_order_leads_back(spacing: tuple[float, float, float]) -> None:
    order = Order.of(spacing)
    assert order.there(spacing)[0] == max(spacing)
    assert order.back(order.there(spacing)) == spacing
    assert order.back(order.there(("z", "y", "x"))) == ("z", "y", "x")
