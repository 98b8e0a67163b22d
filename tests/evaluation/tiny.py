"""A tiny frozen LM whose words are numbers, and tuned models on it: shared by these tests."""

import dataclasses

import jax
import jax.numpy as jnp
import tokenizers
import transformers

from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.methods.zero_shot import ZeroShot
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.models.tuned_model import TunedModel

CONFIG = DecoderConfig(
  vocab_size=40,
  width=16,
  layers=2,
  heads=2,
  kv_heads=1,
  head_dim=8,
  mlp_width=24,
  tied=True,
  context=64,
)
PARAMS = decoder.random_params(CONFIG, jax.random.key(0))


def words():
  """A tokenizer of the words <end>, 1, 2, ... 39, whose ids are 0 to 39."""
  vocabulary = {word: index for index, word in enumerate(["<end>", *map(str, range(1, 40))])}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<end>"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, eos_token="<end>", unk_token="<end>"
  )


def tiny_lm(params=PARAMS, config=CONFIG, tokenizer=None, mesh=None):
  return FrozenLM("tiny", config, params, tokenizer, "f" * 64, mesh)


def tuned(lm, method=None, trained=None, **settings):
  """A tuned model; without a method the unmodified LM."""
  method = method or ZeroShot(lm.config)
  return TunedModel(lm, method, trained or {}, **settings)


def train(model, steps=3, seed=1):
  """The model after a few plain gradient steps on random tokens."""
  tokens = jax.random.randint(jax.random.key(seed), (4, 10), 1, 40)
  batch = {"tokens": tokens, "mask": jnp.ones_like(tokens), "task": jnp.ones(4, jnp.int32)}
  batch |= {
    "target_positions": jnp.tile(jnp.arange(9), (4, 1)),
    "target_ids": tokens[:, 1:],
    "target_mask": jnp.ones_like(tokens[:, 1:]),
  }
  step = jax.jit(jax.grad(lambda tree: model.method.loss(tree, model.frozen, batch, None)[0]))
  trained = model.trained
  for _ in range(steps):
    trained = jax.tree.map(lambda a, g: a - 0.5 * g, trained, step(trained))
  return dataclasses.replace(model, trained=trained)
