"""Multi-scale deformable attention in 3-D: every query takes a weighted sum of samples from several levels.

python examples/loose_op.py
"""

import torch

from maskmed_zoo.ops.deformable import deformable_attention

shapes = [(8, 16, 16), (4, 8, 8)]  # (d h w) of two levels
heads, width, queries, points = 2, 6, 5, 3
voxels = sum(d * h * w for d, h, w in shapes)
values = torch.randn(1, voxels, heads, width)  # the levels flattened, one after the other
locations = torch.rand(1, queries, heads, len(shapes), points, 3)  # z, y, x; 0 and 1 are the faces of the volume
weights = torch.rand(1, queries, heads, len(shapes), points).flatten(3).softmax(-1).unflatten(3, (len(shapes), points))

sampled = deformable_attention(values, shapes, locations, weights)
print("sampled", tuple(sampled.shape), "within the values:", bool(values.min() <= sampled.min()))
