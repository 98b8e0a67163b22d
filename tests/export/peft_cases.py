"""Tiny models and adapters, without torch, that the tests of PEFT's format share."""

import jax
import numpy as np

from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core import paths
from frozen_jax.export import peft
from frozen_jax.methods.lora import LoraSettings
from frozen_jax.models.frozen_lm import FrozenLM

SIZES = DecoderConfig(
  vocab_size=31, width=16, layers=2, heads=4, kv_heads=2, head_dim=6, mlp_width=24
)
LORA = LoraSettings(rank=3, alpha=6.0, targets=("attn/q", "attn/o", "mlp/down"))
P = 5


def lm(family="llama", **changes):
  sizes = {**vars(SIZES), **changes}
  config = DecoderConfig(**sizes)
  params = decoder.random_params(config, jax.random.key(0))
  return FrozenLM("tiny", config, params, None, "f" * 64, family=family)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def updates(lora=LORA, config=SIZES):
  kernels, leaves = paths.flatten(decoder.param_shapes(config)), {}
  for seed, target in enumerate(lora.targets):
    layers, inputs, outputs = kernels[f"layers/{target}/kernel"].shape
    leaves[f"{target}/a"] = draw(layers, inputs, lora.rank, seed=seed)
    leaves[f"{target}/b"] = draw(layers, lora.rank, outputs, seed=50 + seed)
  return paths.unflatten(leaves)


def prefix():
  shape = (SIZES.layers, P, SIZES.kv_heads, SIZES.head_dim)
  return {"k": draw(*shape), "v": draw(*shape, seed=1)}


def an_adapter(kind):
  if kind == "LORA":
    return peft.lora_adapter(updates(), LORA, SIZES, "llama")
  if kind == "PREFIX_TUNING":
    return peft.prefix_adapter(prefix(), SIZES)
  return peft.prompt_adapter(draw(P, SIZES.width), SIZES, 8 if kind == "P_TUNING" else 0)


GPT = {"gated": False, "norm": "layer"}
KINDS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "LORA")
ROWS = KINDS[:-1]
