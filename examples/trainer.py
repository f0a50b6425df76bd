"""Hugging Face's Trainer with an optimized model: a small BERT learns which half of the vocabulary a sentence is from.

    python examples/trainer.py

Needs transformers and accelerate. Everything is made here: no download, no telemetry, no reports to anyone.
"""

from __future__ import annotations

import os
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_VERBOSITY="error")

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import shorthaul as sh


class Sentences(torch.utils.data.Dataset):
    """Random words of the lower (label 0) or upper (label 1) half of a vocabulary of 64."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        words = torch.randint(32, (12,), generator=torch.Generator().manual_seed(i)) + 32 * (i % 2)
        return {"input_ids": words, "attention_mask": torch.ones(12, dtype=torch.int64), "labels": torch.tensor(i % 2)}


def make_model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    return BertForSequenceClassification(config)


def train(model: torch.nn.Module, steps: int = 16) -> list[float]:
    """The losses of the steps."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, max_steps=steps, per_device_train_batch_size=16, learning_rate=5e-3, seed=0,
                                      logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
                                      max_grad_norm=1.0, lr_scheduler_type="linear", gradient_accumulation_steps=1)  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=Sentences())
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    model = sh.optimize(make_model())
    losses = train(model)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(model.report())
