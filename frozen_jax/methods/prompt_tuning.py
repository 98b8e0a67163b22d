"""Prompt tuning (Lester et al., 2021): P trained vectors before the text, one pass (METHODS 1).

Frozen: the LM. Trained: `prompt/vectors` [P, D]. With no prompt at all it is the LM as it comes,
the zero-shot baseline.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Batch, Metrics, Tree
from frozen_jax.methods.targets import last_real, loss_at_targets
from frozen_jax.modules import soft_prompt


@dataclasses.dataclass(frozen=True)
class PromptTuning:
  """The single-pass LM behind a soft prompt.

  `initial_prompt`: [P, D], where the prompt starts; None for no prompt. `remat` recomputes each
  layer in the backward pass.
  """

  decoder: DecoderConfig
  initial_prompt: jax.Array | None = dataclasses.field(compare=False)
  remat: bool = False
  name: str = "prompt_tuning"

  def init(self, key: jax.Array) -> Tree:
    """Trained tree: {"prompt": {"vectors": [P, D]}}; the key is not used, the start is given."""
    del key
    if self.initial_prompt is None:
      return {}
    return {"prompt": soft_prompt.pure(soft_prompt.SoftPrompt(self.initial_prompt))}

  def loss(
    self, trainable: Tree, frozen: Tree, batch: Batch, key: jax.Array | None
  ) -> tuple[jax.Array, Metrics]:
    """See `core.types.Method.loss`."""
    del key
    params = frozen["lm"]
    prompt = soft_prompt.vectors(trainable, "prompt")
    text = lm.embed(params, self.decoder, batch["tokens"])
    x, mask = soft_prompt.prepend(prompt, text, batch["mask"])
    hidden = lm.hidden(params, self.decoder, x, mask, remat=self.remat)
    hidden = hidden[:, x.shape[1] - text.shape[1] :]
    return loss_at_targets(params, self.decoder, hidden, batch)

  def prefill(
    self, trainable: Tree, frozen: Tree, tokens: jax.Array, mask: jax.Array, new: int
  ) -> tuple[jax.Array, Tree]:
    """See `core.types.Method.prefill`."""
    params = frozen["lm"]
    text = lm.embed(params, self.decoder, tokens)
    x, x_mask = soft_prompt.prepend(soft_prompt.vectors(trainable, "prompt"), text, mask)
    hidden, cache = lm.prefill(params, self.decoder, x, x_mask, new)
    last = last_real(hidden, x_mask)
    return lm.logits(params, self.decoder, last)[:, 0], cache

  def decode(
    self, trainable: Tree, frozen: Tree, tokens: jax.Array, state: Tree
  ) -> tuple[jax.Array, Tree]:
    """See `core.types.Method.decode`."""
    params = frozen["lm"]
    x = lm.embed(params, self.decoder, tokens[:, None])
    hidden, cache = lm.step(params, self.decoder, x, state)
    return lm.logits(params, self.decoder, hidden)[:, 0], cache


def build(base: Base, options: Mapping[str, Any]) -> PromptTuning:
  """Prompt tuning as the experiment's `prompt` options say."""
  return PromptTuning(base.config, initial_prompt(base, options), options["model"]["remat"])


def build_zero_shot(base: Base, options: Mapping[str, Any]) -> PromptTuning:
  """The LM as it comes."""
  del options
  return PromptTuning(base.config, None, name="zero_shot")


def initial_prompt(base: Base, options: Mapping[str, Any]) -> jax.Array:
  """Where a prompt starts, [P, D]: embeddings of `prompt.text`, or of random tokens without one.

  Raises UserError for a length below 1, and for a text where the model has no tokenizer.
  """
  length, text = options["prompt"]["length"], options["prompt"]["text"]
  if length < 1:
    raise UserError(f"prompt.length is {length}; a prompt needs at least 1 vector")
  if not text:
    ids = soft_prompt.random_ids(jax.random.key(options["seed"]), base.config.vocab_size, length)
    return _embedded(base, ids)
  if base.tokenizer is None:
    raise UserError(
      "prompt.text needs a tokenizer and this model has none; set --config.prompt.text=''"
    )
  ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
  return _embedded(base, soft_prompt.repeated(ids, length))


def _embedded(base: Base, ids: jax.Array) -> jax.Array:
  return lm.embed(base.params, base.config, ids[None])[0].astype(jnp.float32)
