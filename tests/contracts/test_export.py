"""One contract for every registered head and neck: its exported program can be saved, loaded and run."""

from __future__ import annotations

import io

import pytest
import torch

from tests.contracts.test_components import cases, close, perturb


@pytest.mark.parametrize("case", [c for c in cases("head", "neck") if c.values[0].choice is None])
def test_an_exported_program_is_saved_loaded_and_gives_the_same(case):
    component, inputs = perturb(case.build()).eval(), case.inputs()
    file = io.BytesIO()
    torch.export.save(torch.export.export(component, tuple(inputs)), file)
    file.seek(0)
    output = torch.export.load(file).module()(*inputs)
    assert type(output) is type(component(*inputs))
    close(output, component(*inputs), rtol=1e-5, atol=1e-5)
