"""The masked-query head on feature maps of your own.

python examples/loose_head.py
"""

import torch

from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.heads.masked_query import MaskedQueryConfig, MaskedQueryHead

# Two maps, finest first: their channels, and how many voxels of the image lie along (z, y, x) of one of theirs.
spec = FeatureSpec(channels=(16, 32), strides=((1, 1, 1), (1, 2, 2)))
head = MaskedQueryHead(in_spec=spec, num_classes=3, config=MaskedQueryConfig(width=48), spacing=(3.0, 1.0, 1.0))

output = head([torch.randn(2, 16, 8, 32, 32), torch.randn(2, 32, 8, 16, 16)])
for stage in output.stages:
    print("masks", tuple(stage.masks.shape), "class logits", tuple(stage.class_logits.shape))
print("log-probabilities", tuple(output.log_probabilities().shape))
