"""The set criterion on masks and class logits of your own: any query model's, in 3-D.

python examples/loose_criterion.py
"""

import torch

from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.losses.set_criterion import SetCriterion

torch.manual_seed(0)
masks = torch.randn(2, 5, 8, 16, 16, requires_grad=True)  # five queries
class_logits = torch.randn(2, 5, 4, requires_grad=True)  # three labels, background counted, and "no object"
labels = torch.randint(0, 3, (2, 8, 16, 16))

criterion = SetCriterion(num_classes=3)
loss, parts = criterion(HeadOutput([StageOutput(masks=masks, class_logits=class_logits)]), labels)
loss.backward()
print(f"loss {loss.item():.3f} = 2 x class {parts['class']:.3f} + 10 x bce {parts['bce']:.3f} + 10 x dice", end=" ")
print(f"{parts['dice']:.3f}; gradient of the masks {masks.grad.norm():.4f}")
