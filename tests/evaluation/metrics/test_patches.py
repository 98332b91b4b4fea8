"""The areas of surface elements: those of surface-distance for every code, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

from maskmed_zoo.evaluation.patches import patches


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 2.1), (5.0, 0.8, 0.8)])
def test_areas_are_those_of_surface_distance(spacing) -> None:
    theirs = create_table_neighbour_code_to_surface_area(spacing)
    numbers = [int(f"{code:08b}"[::-1], 2) for code in range(256)]  # its first corner is the highest bit
    assert patches(spacing).areas == pytest.approx(theirs[numbers], rel=1e-12)
    assert (theirs > 0).sum() == 254


def test_by_hand() -> None:
    found = patches((2.0, 1.0, 1.0))
    assert found.areas[[0, 255]].tolist() == [0, 0]
    assert found.areas[0b00001111] == pytest.approx(1.0)  # all of the lower z: a square of y and x
    assert found.areas[0b00110011] == pytest.approx(2.0)  # all of the lower y: z and x
    assert found.centres[0b00001111] == pytest.approx(0)
    corner = found.centres[1]  # a triangle around the corner at -1/2, through the middles of its edges
    assert corner == pytest.approx(-0.5 + 1 / 6)
    assert np.array_equal(found.areas, found.areas[::-1]), "a cube and its complement"
