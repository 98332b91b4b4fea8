"""The matcher: which query answers for which object of a case.

python examples/loose_matcher.py
"""

import torch

from maskmed_zoo.losses.matcher import hungarian, matching_costs

torch.manual_seed(0)
objects = torch.rand(1, 3, 4 * 8 * 8) > 0.7  # three objects as masks (b t voxels), of labels 0, 1 and 2
labels = torch.tensor([[0, 1, 2]])
order = [2, 0, 1]  # four queries: the first shows object 2, the next objects 0 and 1, the last nothing
masks = torch.cat([objects[:, order].float() * 8 - 4, torch.full((1, 1, 4 * 8 * 8), -4.0)], 1)
class_logits = 4 * torch.eye(4)[[*order, 3]].unsqueeze(0)  # the last class is "no object"

costs = matching_costs(masks, class_logits, objects.float(), labels, weights=(2.0, 10.0, 10.0))
assignment = hungarian(costs, present=torch.ones(1, 3, dtype=torch.bool))  # of each query: its object, or -1
print("queries answer for objects", assignment.tolist()[0])
