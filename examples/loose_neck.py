"""The full-scale-aware deformable neck between an encoder and a decoder of yours.

python examples/loose_neck.py
"""

import torch

from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.necks.fsad import FSADConfig, FSADNeck

spec = FeatureSpec(channels=(8, 16, 32), strides=((1, 1, 1), (2, 2, 2), (4, 4, 4)))
levels = [torch.randn(1, c, *size) for c, size in zip(spec.channels, spec.sizes((16, 32, 32)), strict=True)]

neck = FSADNeck(in_spec=spec, config=FSADConfig(query_levels=2, width=48, attention_heads=4), spacing=(3.0, 1.0, 1.0))
for before, after in zip(levels, neck(levels), strict=True):
    print(tuple(after.shape), "enriched" if not torch.equal(before, after) else "as it was")
