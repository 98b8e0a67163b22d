"""What methods on `LayerPasses` share: the loss, and how texts are read.

Such a method says which layers run (`layers`), what is added to them (`added`), and what comes
between passes (`junction`).
"""

import abc

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from frozen_jax.core.types import Batch, HostOrDevice, Metrics, Prompts, Tree
from frozen_jax.methods.causal_lm import CausalLMMethod
from frozen_jax.methods.layer_passes import Added, Junction, LayerPasses, State
from frozen_jax.methods.scoring import Continuations
from frozen_jax.methods.targets import last_real, loss_at_targets


class Layered(CausalLMMethod):
  """A method whose passes run over some of the frozen layers; see `core.types.Method`."""

  layers: LayerPasses

  @abc.abstractmethod
  def added(
    self, trainable: Tree, frozen: Tree, prompts: Prompts, key: PRNGKeyArray | None
  ) -> Added:
    """What is added to the frozen layers for these texts; `key` drives dropout, None: none."""

  @abc.abstractmethod
  def junction(self, trainable: Tree, frozen: Tree, key: PRNGKeyArray | None = None) -> Junction:
    """What comes between the passes."""

  def loss(
    self, trainable: Tree, frozen: Tree, batch: Batch, key: PRNGKeyArray | None
  ) -> tuple[Float[Array, ""], Metrics]:
    """See `core.types.Method.loss`.

    `first_pass_states`, where the batch has them, are those of `LayerPasses.frozen_states`.
    """
    params, added = frozen["lm"], self.added(trainable, frozen, batch, key)
    states, real = batch.get("first_pass_states"), batch.get("real_positions")
    hidden = self.layers.hidden(params, added, batch["tokens"], batch["mask"], states, real)
    loss, metrics = loss_at_targets(params, self.layers.decoder, hidden, batch)
    if "first_pass_cached" in batch:
      metrics = {**metrics, "first_pass_cached": jnp.asarray(batch["first_pass_cached"]).sum()}
    return loss, metrics

  @property
  def first_pass_layers(self) -> str:
    """See `core.types.CachesFirstPass`."""
    of = self.layers
    return f"{of.write}" if of.passes == 1 else f"{of.write} to {of.read or 'final'}"

  def first_pass_states(
    self,
    frozen: Tree,
    tokens: Int[HostOrDevice, "B T"],
    mask: Int[HostOrDevice, "B T"],
  ) -> Float[Array, "B T _"]:
    """What nothing trained changes of texts; see `LayerPasses.frozen_states`."""
    first_prompt = self.first_prompt_of({}, frozen)
    return self.layers.frozen_states(frozen["lm"], first_prompt, tokens, mask)

  def first_prompt_of(self, trainable: Tree, frozen: Tree) -> Float[Array, "P D"] | None:
    """The vectors before the embedded text, or None."""
    del trainable, frozen
    return None

  def read_prompts(
    self,
    trainable: Tree,
    frozen: Tree,
    prompts: Prompts,
    max_new_tokens: int | Int[Array | np.ndarray, "*B"],
    free_slots: int,
  ) -> tuple[Float[Array, "B 1 D"], State]:
    """See `CausalLMMethod.read_prompts`; the state has the caches of all passes."""
    added, tokens = self.added(trainable, frozen, prompts, None), prompts["tokens"]
    hidden, state = self.layers.prefill(
      frozen["lm"], added, tokens, prompts["mask"], max_new_tokens, free_slots
    )
    return last_real(hidden, prompts["mask"]), state

  def read_token(
    self, trainable: Tree, frozen: Tree, tokens: Int[Array | np.ndarray, "B"], state: State
  ) -> tuple[Float[Array, "B 1 D"], State]:
    """See `CausalLMMethod.read_token`: one single-token step in each pass."""
    return self.layers.step(frozen["lm"], self.junction(trainable, frozen), tokens, state)

  def read_continuations(
    self, trainable: Tree, frozen: Tree, continuations: Continuations, state: State
  ) -> Float[Array, "B N D"]:
    """See `CausalLMMethod.read_continuations`: each pass reads all of them together."""
    junction = self.junction(trainable, frozen)
    return self.layers.after_cache(frozen["lm"], junction, continuations, state)
