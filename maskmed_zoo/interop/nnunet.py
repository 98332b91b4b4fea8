"""Weights of nnU-Net v2's networks for models of this package.

Idea: encoders `plain_conv` and `residual`, neck `skip`, decoder `unet` and head `pointwise` have the layers of
nnU-Net's `PlainConvUNet` and `ResidualEncoderUNet` under other names, so a checkpoint needs new keys only:

```python
model.load_state_dict(import_state_dict(checkpoint["network_weights"], model))
```

Source: dynamic-network-architectures (Isensee et al.), compared output by output in the tests. The names are those of
`maskmed_zoo.weights.keys`; to load a file, with a report and parts that differ, take `maskmed_zoo.load_weights`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.weights.keys import is_duplicate, nnunet_name


def import_state_dict(state: Mapping[str, Tensor], model: SegmentationModel) -> dict[str, Tensor]:
    """The state dict of an nnU-Net network under the keys of `model`, complete and of the right shapes.

    Raises `CheckpointError` naming the first key that does not fit.
    """
    expected = model.state_dict()
    stages = len(model.decoder.out_spec)
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if is_duplicate(key):
            continue
        name = nnunet_name(key, stages)
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
