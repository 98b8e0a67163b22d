"""What all methods of one pass through the LM share: the loss, and how texts are read.

A method of one pass defines what it adds to the LM: vectors before the text (`prompt`), parameters
within the layers, or weights in place of the frozen ones (`pass_params`).
"""

import dataclasses
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones import peft_layers
from frozen_jax.backbones.cache import KVCache
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core.types import Batch, Metrics, Prompts, Tree
from frozen_jax.methods.causal_lm import CausalLMMethod
from frozen_jax.methods.scoring import Continuations
from frozen_jax.methods.targets import last_real, loss_at_targets


class PassParams(NamedTuple):
  """The parameters of one pass.

  params: the LM's weights. peft: trained parameters within the layers (`backbones.peft_layers`).
  train_params: whether `params` get a gradient, as in full fine-tuning; else they are frozen.
  """

  params: Tree
  peft: Tree | None = None
  train_params: bool = False


@dataclasses.dataclass(frozen=True)
class SinglePass(CausalLMMethod):
  """One pass; `remat`: what a layer keeps, see `core.remat`. See `core.types.Method`."""

  decoder: DecoderConfig
  remat: str = dataclasses.field(default="none", kw_only=True)

  no_decay: ClassVar[tuple[str, ...]] = ()
  reads_encoder: ClassVar[bool] = False

  @property
  def encoder_input(self) -> str:
    """See `core.types.Method.encoder_input`."""
    return ""

  def pass_params(self, trainable: Tree, frozen: Tree) -> PassParams:
    """The parameters of the pass, given the trained and the frozen tree; here the frozen LM's."""
    del trainable
    return PassParams(frozen["lm"])

  def prompt(
    self, trainable: Tree, frozen: Tree, prompts: Prompts
  ) -> Float[Array, "*B P D"] | None:
    """The vectors before the texts, [P, D] for all rows or [B, P, D]; None for none."""
    del trainable, frozen, prompts
    return None

  def num_virtual_tokens(self, trainable: Tree, frozen: Tree) -> int:
    """See `core.types.Method.num_virtual_tokens`."""
    return peft_layers.prefix_length(self.pass_params(trainable, frozen).peft)

  def loss(
    self, trainable: Tree, frozen: Tree, batch: Batch, key: PRNGKeyArray | None
  ) -> tuple[Float[Array, ""], Metrics]:
    """See `core.types.Method.loss`."""
    del key
    params, peft, train_params = self.pass_params(trainable, frozen)
    text = lm.embed(params, self.decoder, batch["tokens"], trained=train_params)
    hidden = lm.hidden(
      params,
      self.decoder,
      text,
      batch["mask"],
      prompt=self.prompt(trainable, frozen, batch),
      peft=peft,
      trained=train_params,
      remat=self.remat,
      real=batch.get("real_positions"),
    )
    return loss_at_targets(params, self.decoder, hidden, batch, train_params=train_params)

  def lm_params(self, trainable: Tree, frozen: Tree) -> Tree:
    """See `CausalLMMethod.lm_params`."""
    return self.pass_params(trainable, frozen).params

  def read_prompts(
    self,
    trainable: Tree,
    frozen: Tree,
    prompts: Prompts,
    max_new_tokens: int | Int[Array | np.ndarray, "*B"],
    free_slots: int,
  ) -> tuple[Float[Array, "B 1 D"], KVCache]:
    """See `CausalLMMethod.read_prompts`."""
    params, peft, _ = self.pass_params(trainable, frozen)
    text = lm.embed(params, self.decoder, prompts["tokens"])
    hidden, cache = lm.prefill(
      params,
      self.decoder,
      text,
      prompts["mask"],
      max_new_tokens,
      free_slots=free_slots,
      prompt=self.prompt(trainable, frozen, prompts),
      peft=peft,
    )
    return last_real(hidden, prompts["mask"]), cache

  def read_token(
    self, trainable: Tree, frozen: Tree, tokens: Int[Array | np.ndarray, "B"], state: KVCache
  ) -> tuple[Float[Array, "B 1 D"], KVCache]:
    """See `CausalLMMethod.read_token`."""
    params, peft, _ = self.pass_params(trainable, frozen)
    x = lm.embed(params, self.decoder, tokens[:, None])
    return lm.step(params, self.decoder, x, state, peft=peft)

  def read_continuations(
    self, trainable: Tree, frozen: Tree, continuations: Continuations, state: KVCache
  ) -> Float[Array, "B N D"]:
    """See `CausalLMMethod.read_continuations`."""
    params, peft, _ = self.pass_params(trainable, frozen)
    tokens, position_ids, mask, _ = continuations
    x = lm.embed(params, self.decoder, tokens)
    return lm.hidden_after_cache(params, self.decoder, x, state, position_ids, mask, peft=peft)
