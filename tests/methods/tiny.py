"""A tiny random frozen LM with a text encoder, as the methods' tests build on it."""

import types

import jax

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones import encoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.methods.layer_passes import LayerPasses
from frozen_jax.methods.neural_recursion import NeuralRecursion
from frozen_jax.modules.connector import ConnectorConfig
from frozen_jax.modules.settings import PromptSettings

CONFIG = DecoderConfig(
  vocab_size=97, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp_width=48, tied=True
)
PARAMS = lm.random_params(CONFIG, jax.random.key(0))
ENCODER = EncoderConfig(
  vocab_size=53, width=24, layers=2, heads=3, head_dim=8, mlp_width=40, context=40
)
ENCODER_PARAMS = encoder.random_params(ENCODER, jax.random.key(3))
SETTINGS = PromptSettings(length=5, text="a text")
RANDOM_START = PromptSettings(length=5, text="")


def tokenizer(text, add_special_tokens):
  """Every text has the same three tokens."""
  assert text and not add_special_tokens
  return {"input_ids": [5, 17, 44]}


def recursion(config=CONFIG, connector=None, **options):
  """A recursive LM with a Connector that does not start at zero; options: of its layers too."""
  sizes = {"width": 16, "heads": 2, "zero_output": options.pop("zero_output", False)}
  names = ("write", "read", "passes")
  layers = LayerPasses(config, **{name: options.pop(name) for name in names if name in options})
  connector = connector or ConnectorConfig(**sizes)
  return NeuralRecursion(layers, connector, 0.1, RANDOM_START, **options)


def base(config=CONFIG, params=PARAMS, **changes):
  """What `Method.build` and `Method.init` see; see `core.types.Base`."""
  text_encoder = types.SimpleNamespace(
    config=ENCODER,
    params=ENCODER_PARAMS,
    tokenizer=None,
    embed=lambda ids: encoder.embed(ENCODER_PARAMS, ENCODER, ids),
  )
  parts = {
    "config": config,
    "params": params,
    "tokenizer": tokenizer,
    "embed": lambda ids: lm.embed(params, config, ids),
    "embedding_rms": 0.1,
    "stream_rms": lambda layer: 0.5,
    "encoder": text_encoder,
  }
  return types.SimpleNamespace(**(parts | changes))
