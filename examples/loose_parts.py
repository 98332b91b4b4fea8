"""The head and its loss alone, on any list of 3-D feature maps, in a plain loop.

python examples/loose_parts.py
"""

import torch
from torch import nn

from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.heads.masked_query import MaskedQueryConfig, MaskedQueryHead
from maskmed_zoo.losses.set_criterion import SetCriterion

torch.manual_seed(0)
NUM_CLASSES = 3  # background counted

# Two feature maps, finest first, of a network of yours; here two convolutions.
fine = nn.Conv3d(1, 16, 3, padding=1)
coarse = nn.Conv3d(16, 32, 3, stride=(1, 2, 2), padding=1)
spec = FeatureSpec(channels=(16, 32), strides=((1, 1, 1), (1, 2, 2)))

head = MaskedQueryHead(in_spec=spec, num_classes=NUM_CLASSES, config=MaskedQueryConfig(width=48), spacing=(3, 1, 1))
criterion = SetCriterion(num_classes=NUM_CLASSES)
optimizer = torch.optim.AdamW(nn.ModuleList([fine, coarse, head]).parameters(), lr=1e-3)

image = torch.randn(2, 1, 8, 32, 32)
labels = torch.zeros(2, 8, 32, 32, dtype=torch.long)
labels[:, 2:6, 4:16, 4:16], labels[:, 2:6, 18:28, 18:28] = 1, 2

for step in range(3):
    features = fine(image)
    loss, parts = criterion(head([features, coarse(features)]), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.3f}  " + "  ".join(f"{k} {v.item():.3f}" for k, v in parts.items()))
