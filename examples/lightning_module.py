"""A recipe's network and loss in a Lightning module. Needs `pip install lightning`.

python examples/lightning_module.py
"""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import maskmed_zoo as zoo
from maskmed_zoo.model import build_loss


class Segmenter(lightning.LightningModule):
    """Every parameter group with its own learning rate; batches are images (b c d h w) and labels (b d h w)."""

    def __init__(self, recipe, lr: float = 1e-3, transformer_scale: float = 0.3) -> None:
        super().__init__()
        self.model = zoo.create(recipe)
        self.loss = build_loss(recipe.model, num_classes=self.model.num_classes, ignore_label=None)
        self.rates = {"cnn": lr, "transformer": lr * transformer_scale}

    def training_step(self, batch, _index):
        loss, parts = self.loss(self.model(batch[0]), batch[1])
        self.log_dict({"loss": loss.detach(), **parts})
        return loss

    def predict_step(self, batch, _index):
        return self.model.predict(batch[0]).argmax(1)

    def configure_optimizers(self):
        groups = self.model.parameter_groups()
        return torch.optim.AdamW([{"params": p, "lr": self.rates[name]} for name, p in groups.items()])


if __name__ == "__main__":
    lightning.seed_everything(0, verbose=False)
    narrow = {"model.encoder.channels": [8, 16, 32], "model.head.width": 48, "model.neck.width": 48}
    labels = torch.zeros(4, 16, 16, 16, dtype=torch.long)
    labels[:, 4:12, 4:12, 2:8], labels[:, 4:12, 4:12, 8:14] = 1, 2
    images = torch.randn(4, 1, 16, 16, 16) + 3 * labels.unsqueeze(1)
    module = Segmenter(zoo.load_recipe("maskmed_hippocampus_cpu", narrow))
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=2))
    print(f"after {trainer.global_step} steps: loss {trainer.callback_metrics['loss']:.2f}")
