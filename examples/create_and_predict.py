"""A network from a recipe, the head's output, and a label map: everything but the training.

python examples/create_and_predict.py
"""

import torch

import maskmed_zoo as zoo

torch.manual_seed(0)

# A recipe of the zoo with a narrower encoder, two query levels in the neck, and four labels instead of three.
model = zoo.create(
    "maskmed_hippocampus_cpu",
    num_classes=4,
    model__encoder__channels=[8, 16, 32, 64],
    model__neck__query_levels=2,
    model__head__width=96,
)
image = torch.randn(1, 1, 32, 40, 32)  # batch, channel, z, y, x

output = model(image)
for stage in output.stages:  # full resolution first
    masks, class_logits = stage.masks, stage.class_logits
    print(f"{masks.shape[1]} masks of {tuple(masks.shape[2:])} voxels, class logits {tuple(class_logits.shape[1:])}")

model.eval()
with torch.inference_mode():
    log_probabilities = model.predict(image)  # batch, label, z, y, x
total = log_probabilities.exp().sum(1)
print(f"probabilities sum to {total.min():.4f} … {total.max():.4f}")
print(f"label map {tuple(log_probabilities.argmax(1).shape)} with fresh weights; train it to make it mean something")
