"""Lightning with an optimized model: a small network learns the parity of the number of positive inputs.

    python examples/lightning_module.py

Needs lightning. Everything is made here: no download, no logger.
"""

from __future__ import annotations

import lightning as L
import torch
from torch import nn

import shorthaul as sh


class Parity(L.LightningModule):
    """The network is a submodule of its own: it is what is optimized."""

    def __init__(self, optimized: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network: nn.Module = nn.Sequential(
            nn.Linear(4, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2)
        )
        if optimized:
            sh.optimize(self.network)
        self.losses: list[float] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.network(inputs), labels)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)}


def data(batch_size: int = 32) -> torch.utils.data.DataLoader:
    inputs = torch.randn(256, 4, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, (inputs > 0).sum(1) % 2), batch_size)


def train(module: Parity, epochs: int = 8) -> list[float]:
    """The losses of the steps."""
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0)  # fmt: skip
    trainer.fit(module, data())
    return module.losses


if __name__ == "__main__":
    parity = Parity()
    losses = train(parity)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(parity.network.report())
