"""A network of the zoo in MONAI's hands: its sliding window, its one-hot labels and its Dice.

python examples/monai_inference.py
"""

import torch
from monai.inferers.utils import sliding_window_inference
from monai.metrics.meandice import DiceMetric
from monai.transforms.post.array import AsDiscrete

import maskmed_zoo as zoo

torch.manual_seed(0)

model = zoo.create("maskmed_hippocampus_cpu", model__encoder__channels=[8, 16, 32, 64]).eval()
network = zoo.as_logits(model)  # (b c d h w) -> (b k d h w), one tensor
image = torch.randn(1, 1, 40, 56, 36)  # batch, channel, z, y, x
reference = torch.randint(0, model.num_classes, (1, 1, 40, 56, 36))

with torch.inference_mode():
    scores = sliding_window_inference(image, (32, 40, 32), sw_batch_size=2, predictor=network, overlap=0.5)
print(f"scores {tuple(scores.shape)}")

one_hot = AsDiscrete(argmax=True, to_onehot=model.num_classes)
labels = torch.stack([torch.as_tensor(one_hot(case)) for case in torch.as_tensor(scores)])
references = torch.stack([torch.as_tensor(AsDiscrete(to_onehot=model.num_classes)(case)) for case in reference])
dice = DiceMetric(include_background=False)
dice(labels, references)
print(f"mean Dice {float(dice.aggregate()):.3f} of fresh weights against noise; train them to make it mean something")
