"""A training loop without the package's runner: a MONAI network with our head, two learning rates, a label map.

python examples/plain_loop.py
"""

import torch
from monai.networks.nets import DynUNet

import maskmed_zoo as zoo
from maskmed_zoo.losses.set_criterion import SetCriterion

torch.manual_seed(0)
network = DynUNet(3, 1, 3, [3] * 3, [1, 2, 2], [2, 2], filters=[8, 16, 32])
head = {"kind": "masked_query", "width": 48, "attention_heads": 4}
model = zoo.attach_head(network, head, num_classes=3, patch_size=(16, 32, 32), spacing=(3.0, 1.0, 1.0))
criterion = SetCriterion(num_classes=3)
rates = {"cnn": 3e-3, "transformer": 1e-3}
groups = [{"params": parameters, "lr": rates[name]} for name, parameters in model.parameter_groups().items()]
optimizer = torch.optim.AdamW(groups)

labels = torch.zeros(2, 16, 32, 32, dtype=torch.long)
labels[:, 4:12, 6:16, 6:16], labels[:, 4:12, 16:26, 16:26] = 1, 2
image = torch.randn(2, 1, 16, 32, 32) + 3 * labels.unsqueeze(1)

for step in range(20):
    loss, parts = criterion(model(image), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 5 == 4:
        print(f"step {step}: loss {loss.item():.2f}  " + "  ".join(f"{k} {v.item():.2f}" for k, v in parts.items()))

with torch.inference_mode():
    predicted = model.eval().predict(image).argmax(1)
print(f"voxels that are right: {(predicted == labels).float().mean():.2f}")
