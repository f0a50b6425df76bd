"""Models of the `transformers` library with small random configurations: nothing is downloaded.

`MODELS[name]` is (a function that makes the model, a function of a generator that makes its keyword arguments, labels included).
Dropout is off, so that runs can be compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Generator, Tensor, nn

Make = Callable[[], nn.Module]
Arguments = Callable[[Generator], dict[str, Any]]

WORDS = 60


def _model(head: str, config: str, **options: Any) -> Make:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, head)(getattr(transformers, config)(**options))

    return make


def words(generator: Generator, length: int = 10, count: int = 2, first: int = 3) -> Tensor:
    return torch.randint(first, WORDS, (count, length), generator=generator)


def _causal(generator: Generator) -> dict[str, Any]:
    tokens = words(generator)
    return {"input_ids": tokens, "labels": tokens}


def _padded(generator: Generator) -> dict[str, Any]:
    """Masked words; the second sequence is shorter."""
    tokens = words(generator)
    mask = torch.ones_like(tokens)
    mask[1, -3:] = 0
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}


def _images(side: int, classes: int = 5, count: int = 3) -> Arguments:
    def make(generator: Generator) -> dict[str, Any]:
        return {
            "pixel_values": torch.randn(count, 3, side, side, generator=generator),
            "labels": torch.randint(0, classes, (count,), generator=generator),
        }

    return make


def _sequences(generator: Generator) -> dict[str, Any]:
    return {"input_ids": words(generator, 9), "labels": words(generator, 6)}


def _speech(generator: Generator) -> dict[str, Any]:
    return {"input_features": torch.randn(2, 8, 24, generator=generator), "labels": words(generator, 6)}


def _boxes(generator: Generator) -> dict[str, Any]:
    def target(count: int) -> dict[str, Tensor]:
        classes = torch.randint(0, 5, (count,), generator=generator)
        corners = torch.rand(count, 2, generator=generator) * 0.4 + 0.3
        return {"class_labels": classes, "boxes": torch.cat([corners, torch.full((count, 2), 0.2)], 1)}

    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator), "labels": [target(2), target(1)]}


def _segments(generator: Generator) -> dict[str, Any]:
    return {
        "pixel_values": torch.randn(2, 3, 32, 32, generator=generator),
        "labels": torch.randint(0, 5, (2, 32, 32), generator=generator),
    }


def _detr() -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", out_features=["stage2"])
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, num_queries=4,
        d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, dropout=0.0, num_labels=5,
    )  # fmt: skip
    return DetrForObjectDetection(config)


_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, **_NO_DROPOUT}
_LLAMA = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 32}  # fmt: skip

MODELS: dict[str, tuple[Make, Arguments]] = {
    "bert": (_model("BertForMaskedLM", "BertConfig", vocab_size=WORDS, max_position_embeddings=16, **_ENCODER), _padded),
    "gpt2": (
        _model("GPT2LMHeadModel", "GPT2Config", vocab_size=WORDS, n_positions=16, n_embd=16, n_layer=2, n_head=2,
               resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2, loss_type="ForCausalLM"),
        _causal,
    ),
    "llama": (_model("LlamaForCausalLM", "LlamaConfig", **_LLAMA), _causal),
    "mixtral": (
        _model("MixtralForCausalLM", "MixtralConfig", num_local_experts=3, num_experts_per_tok=2,
               experts_implementation="batched_mm", **_LLAMA),
        _causal,
    ),
    "mamba": (
        _model("MambaForCausalLM", "MambaConfig", vocab_size=WORDS, hidden_size=16, state_size=4, num_hidden_layers=2,
               expand=2, conv_kernel=4, time_step_rank=4, use_associative_scan=False),
        _causal,
    ),
    "t5": (
        _model("T5ForConditionalGeneration", "T5Config", vocab_size=WORDS, d_model=16, d_kv=8, d_ff=24, num_layers=2,
               num_heads=2, dropout_rate=0.0, decoder_start_token_id=0),
        _sequences,
    ),
    "vit": (
        _model("ViTForImageClassification", "ViTConfig", image_size=16, patch_size=4, num_labels=5, **_ENCODER),
        _images(16),
    ),
    "swin": (
        _model("SwinForImageClassification", "SwinConfig", image_size=32, patch_size=4, embed_dim=8, depths=[2, 2],
               num_heads=[2, 2], window_size=4, drop_path_rate=0.0, num_labels=5, **_NO_DROPOUT),
        _images(32),
    ),
    "convnext": (
        _model("ConvNextForImageClassification", "ConvNextConfig", num_stages=3, hidden_sizes=[8, 12, 16], depths=[1, 1, 1],
               patch_size=2, num_labels=5),
        _images(24),
    ),
    "whisper": (
        _model("WhisperForConditionalGeneration", "WhisperConfig", vocab_size=WORDS, num_mel_bins=8, d_model=16,
               encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
               decoder_ffn_dim=24, max_source_positions=12, max_target_positions=16, dropout=0.0, pad_token_id=0,
               bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None),
        _speech,
    ),
    "detr": (_detr, _boxes),
    "segformer": (
        _model("SegformerForSemanticSegmentation", "SegformerConfig", num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1],
               hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
               decoder_hidden_size=12, drop_path_rate=0.0, classifier_dropout_prob=0.0, num_labels=5, **_NO_DROPOUT),
        _segments,
    ),
}  # fmt: skip
NATIVE = ("bert", "gpt2", "llama", "vit", "convnext")  # without an operator that runs through PyTorch
