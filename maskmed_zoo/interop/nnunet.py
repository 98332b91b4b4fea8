"""Weights of nnU-Net v2's networks for models of this package.

Idea: encoders `plain_conv` and `residual`, neck `skip`, decoder `unet` and head `pointwise` have the layers of
nnU-Net's `PlainConvUNet` and `ResidualEncoderUNet` under other names, so a checkpoint needs new keys only:

```python
model.load_state_dict(import_state_dict(checkpoint["network_weights"], model))
```

Source: dynamic-network-architectures (Isensee et al.), compared output by output in the tests. nnU-Net stores every
layer twice (`all_modules`, `decoder.encoder`) and counts decoder stages from the lowest; here stage 0 is the finest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.model import SegmentationModel

_DUPLICATES = re.compile(r"^decoder\.encoder\.|\.all_modules\.")
_ENCODER_RULES = (
    (re.compile(r"^encoder\.stem\.convs\.(\d+)\."), r"encoder.stem.\1."),
    (re.compile(r"^encoder\.stages\.(\d+)\.(?:0\.convs|blocks)\.(\d+)\."), r"encoder.levels.\1.\2."),
    (re.compile(r"\.skip\.\d+\."), ".skip.1."),  # nnU-Net leaves the pooling out of the list where there is none
)
_DECODER_RULES = (
    (re.compile(r"^decoder\.transpconvs\.(\d+)\."), "decoder.upsamplers.{}."),
    (re.compile(r"^decoder\.stages\.(\d+)\.convs\."), "decoder.stages.{}."),
    (re.compile(r"^decoder\.seg_layers\.(\d+)\."), "head.projections.{}."),
)


def import_state_dict(state: Mapping[str, Tensor], model: SegmentationModel) -> dict[str, Tensor]:
    """The state dict of an nnU-Net network under the keys of `model`, complete and of the right shapes.

    Raises `CheckpointError` naming the first key that does not fit.
    """
    expected = model.state_dict()
    stages = len(model.decoder.out_spec)
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if _DUPLICATES.search(key):
            continue
        name = _rename(key, stages)
        if name not in expected:
            raise CheckpointError(
                f"nnU-Net key '{key}' has no counterpart in the model; it must have nnU-Net's number of levels and "
                f"blocks, encoder plain_conv or residual, neck skip, decoder unet and head pointwise"
            )
        if value.shape != expected[name].shape:
            raise CheckpointError(
                f"nnU-Net key '{key}' has shape {tuple(value.shape)}, the model's '{name}' has "
                f"{tuple(expected[name].shape)}; channels, kernels, strides and labels must be those of nnU-Net's plan"
            )
        renamed[name] = value
    for name in expected:
        if name not in renamed:
            raise CheckpointError(f"the model's '{name}' is not in the nnU-Net state dict: it is another network's")
    return renamed


def _rename(key: str, stages: int) -> str:
    for pattern, name in _DECODER_RULES:
        match = pattern.match(key)
        if match:
            return name.format(stages - 1 - int(match[1])) + key[match.end() :]
    for pattern, name in _ENCODER_RULES:
        key = pattern.sub(name, key)
    return key
