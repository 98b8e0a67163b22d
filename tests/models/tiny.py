"""A tiny random decoder, shared by these tests."""

import jax

from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig

CONFIG = DecoderConfig(
  vocab_size=31,
  width=16,
  layers=1,
  heads=2,
  kv_heads=1,
  head_dim=8,
  mlp_width=24,
  tied=True,
  context=60,
)
PARAMS = decoder.random_params(CONFIG, jax.random.key(3))
