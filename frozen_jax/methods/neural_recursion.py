"""The neural recursive LM: LM - Connector - LM (Levine et al., 2022; docs/paper.md, 4.2).

Frozen: the LM, and a tuned prompt before the first pass. Trained: `connector` (the small causal
network between the passes, shared by all junctions when there are more than two passes) and,
where wanted, `prompt` before the later passes and `first_prompt` before the first.

Nothing trained is upstream of the first pass unless `first_prompt` is trained, so that pass has no
backward pass. A token is generated with one single-token step in each pass.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones.cache import KVCache
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.config.section import Section, setting
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Batch, HostOrDevice, Method, Metrics, Prompts, Tree
from frozen_jax.methods.prompt_tuning import PromptTuning, initial_prompt
from frozen_jax.methods.scoring import Continuations, choice_log_likelihoods, longest_choice
from frozen_jax.methods.targets import last_real, loss_at_targets
from frozen_jax.methods.zero_shot import ZeroShot
from frozen_jax.modules import soft_prompt
from frozen_jax.modules.connector import Connector, ConnectorCache, ConnectorConfig
from frozen_jax.modules.nnx_params import module_params, with_params
from frozen_jax.modules.settings import PromptSettings, check_heads

_FIRST_PROMPTS = ("none", "frozen", "trained")
_LAST_PROMPTS = ("none", "trained")


@dataclasses.dataclass(frozen=True)
class ConnectorSettings(Section):
  """The network between two passes."""

  section: ClassVar[str] = "recursion.connector"

  width: int = setting(256, "of the Connector", at_least=1)
  layers: int = setting(2, "of the Connector", at_least=1)
  heads: int = setting(4, "attention heads of the Connector", at_least=1)
  dropout: float = setting(0.1, "share that the Connector drops in training", at_least=0, below=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    check_heads(self)


@dataclasses.dataclass(frozen=True)
class RecursionSettings(Section):
  """The recursive LM."""

  section: ClassVar[str] = "recursion"

  passes: int = setting(2, "how often the LM runs", at_least=2)
  input_skip: bool = setting(
    True, "add the text's embeddings to the Connector's output; False: the paper's plain form"
  )
  first_prompt: str = setting(
    "frozen",
    "before the first pass; frozen: the tuned one",
    choices=_FIRST_PROMPTS,
  )
  last_prompt: str = setting("trained", "before the later passes", choices=_LAST_PROMPTS)
  connector: ConnectorSettings = setting(ConnectorSettings(), "the network between two passes")
  cache_first_pass: bool = setting(
    False,
    "keep the first pass's states of each text in memory and on disk: from the second epoch on a"
    " step costs two thirds; needs a first prompt that is not trained",
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.cache_first_pass and self.first_prompt == "trained":
      raise UserError(
        "recursion.cache_first_pass keeps what a trained first prompt changes; set it to False, or"
        " recursion.first_prompt to frozen or none"
      )


class _State(NamedTuple):
  """lm: the LM's cache of each pass. connector: the Connector's cache of each junction."""

  lm: tuple[KVCache, ...]
  connector: tuple[ConnectorCache, ...]


@dataclasses.dataclass(frozen=True)
class NeuralRecursion:
  """Two or more passes through one frozen LM, joined by a trained Connector.

  connector      sizes of the Connector
  embedding_rms  root mean square of the LM's token embeddings, the size of the Connector's output
  settings       how long the trained prompts are and where they start
  passes         how often the LM runs (2 in the paper)
  input_skip     add the text's embeddings to the Connector's output; with a zero-initialised
                 output the recursion starts out as the single-pass LM
  first_prompt   before the first pass: "none", "frozen" (it comes with the frozen tree as
                 `frozen_inputs/first_prompt`) or "trained"
  last_prompt    before the later passes: "none" or "trained"
  remat          what a layer keeps for the backward pass, see `core.remat`
  caches_first_pass  whether batches hold the first pass's states of their texts
  """

  decoder: DecoderConfig
  connector: ConnectorConfig
  embedding_rms: float
  settings: PromptSettings = dataclasses.field(compare=False)
  passes: int = 2
  input_skip: bool = True
  first_prompt: str = "frozen"
  last_prompt: str = "trained"
  remat: str = "none"
  caches_first_pass: bool = dataclasses.field(default=False, compare=False)

  name: ClassVar[str] = "neural_recursion"
  sections: ClassVar[Mapping[str, type]] = {
    "prompt": PromptSettings,
    "recursion": RecursionSettings,
  }
  learning_rates: ClassVar[Mapping[str, float]] = {
    "connector": 3e-4,
    "prompt": 0.02,
    "first_prompt": 0.02,
  }
  no_decay: ClassVar[tuple[str, ...]] = ("prompt/.*", "first_prompt/.*")
  reads_encoder: ClassVar[bool] = False
  encoder_input: ClassVar[str] = ""

  @classmethod
  def build(
    cls,
    base: Base,
    sections: Mapping[str, Any],
    *,
    remat: str = "none",
    datasets: Sequence[str] = (),
  ) -> "NeuralRecursion":
    """See `core.types.Method.build`."""
    del datasets
    recursion, prompt = sections["recursion"], sections["prompt"]
    sizes = dataclasses.asdict(recursion.connector)
    connector = ConnectorConfig(**sizes, zero_output=recursion.input_skip)
    return cls(
      base.config,
      connector,
      base.embedding_rms,
      prompt,
      passes=recursion.passes,
      input_skip=recursion.input_skip,
      first_prompt=recursion.first_prompt,
      last_prompt=recursion.last_prompt,
      remat=remat,
      caches_first_pass=recursion.cache_first_pass,
    )

  def init(self, base: Base, key: PRNGKeyArray) -> Tree:
    """Trained tree: {"connector": ..., "prompt"?: ..., "first_prompt"?: ...}, float32.

    Both prompts, where they are trained, start from the same vectors.
    """
    tree = {"connector": module_params(self._new_connector(key))}
    for name, kind in (("prompt", self.last_prompt), ("first_prompt", self.first_prompt)):
      if kind == "trained":
        tree[name] = soft_prompt.prompt_params(initial_prompt(base, self.settings, key))
    return tree

  def loss(
    self, trainable: Tree, frozen: Tree, batch: Batch, key: PRNGKeyArray | None
  ) -> tuple[Float[Array, ""], Metrics]:
    """See `core.types.Method.loss`; the key drives the Connector's dropout.

    `first_pass_states` [B, T, D], where the batch has them, are taken for those of the first pass.
    """
    params, connector = frozen["lm"], self._connector(trainable)
    text = lm.embed(params, self.decoder, batch["tokens"])
    if "first_pass_states" in batch:
      hidden = jnp.asarray(batch["first_pass_states"])
    else:
      hidden = self._pass(params, self._prompt(trainable, frozen, 0), text, batch["mask"])
    for index in range(1, self.passes):
      junction_key = None if key is None else jax.random.fold_in(key, index)
      output, _ = connector(hidden, batch["mask"], junction_key)
      x = self._next_input(text, output)
      hidden = self._pass(params, self._prompt(trainable, frozen, index), x, batch["mask"])
    loss, metrics = loss_at_targets(params, self.decoder, hidden, batch)
    if "first_pass_cached" in batch:
      metrics = {**metrics, "first_pass_cached": jnp.asarray(batch["first_pass_cached"]).sum()}
    return loss, metrics

  def first_pass_states(
    self,
    frozen: Tree,
    tokens: Int[HostOrDevice, "B T"],
    mask: Int[HostOrDevice, "B T"],
  ) -> Float[Array, "B T D"]:
    """The first pass's hidden states of texts, which nothing trained changes."""
    text = lm.embed(frozen["lm"], self.decoder, tokens)
    return self._pass(frozen["lm"], self._prompt({}, frozen, 0), text, mask)

  def num_virtual_tokens(self, trainable: Tree, frozen: Tree) -> int:
    """See `core.types.Method.num_virtual_tokens`."""
    prompts = (self._prompt(trainable, frozen, index) for index in range(self.passes))
    return max((len(prompt) for prompt in prompts if prompt is not None), default=0)

  def prefill(
    self,
    trainable: Tree,
    frozen: Tree,
    prompts: Prompts,
    max_new_tokens: int | Int[Array | np.ndarray, "*B"],
    free_slots: int,
  ) -> tuple[Float[Array, "B V"], _State]:
    """See `core.types.Method.prefill`."""
    last_hidden, state = self._prefill(trainable, frozen, prompts, max_new_tokens, free_slots)
    return lm.logits(frozen["lm"], self.decoder, last_hidden)[:, 0], state

  def decode(
    self, trainable: Tree, frozen: Tree, tokens: Int[Array | np.ndarray, "B"], state: _State
  ) -> tuple[Float[Array, "B V"], _State]:
    """See `core.types.Method.decode`: one single-token step in each pass."""
    params, connector = frozen["lm"], self._connector(trainable)
    text = lm.embed(params, self.decoder, tokens[:, None])
    x, lm_caches, connector_caches = text, [], []
    for index in range(self.passes):
      hidden, lm_cache = lm.step(params, self.decoder, x, state.lm[index])
      lm_caches.append(lm_cache)
      if index + 1 < self.passes:
        output, connector_cache = connector.step(hidden, state.connector[index])
        connector_caches.append(connector_cache)
        x = self._next_input(text, output)
    logits = lm.logits(params, self.decoder, hidden)[:, 0]
    return logits, _State(tuple(lm_caches), tuple(connector_caches))

  def log_likelihoods(
    self,
    trainable: Tree,
    frozen: Tree,
    prompts: Prompts,
    choices: Int[Array | np.ndarray, "B A M"],
    choice_mask: Int[Array | np.ndarray, "B A M"],
  ) -> Float[Array, "B A"]:
    """See `core.types.Method.log_likelihoods`: each pass reads all choices of a row together."""
    params, connector = frozen["lm"], self._connector(trainable)
    max_new_tokens = longest_choice(choice_mask)
    last_hidden, state = self._prefill(trainable, frozen, prompts, max_new_tokens, 0)

    def hidden_of(continuations: Continuations) -> jax.Array:
      tokens, position_ids, attention_mask = continuations
      text = x = lm.embed(params, self.decoder, tokens)
      for index in range(self.passes):
        hidden = lm.hidden_after_cache(
          params, self.decoder, x, state.lm[index], position_ids, attention_mask
        )
        if index + 1 < self.passes:
          output = connector.hidden_after_cache(hidden, state.connector[index], attention_mask)
          x = self._next_input(text, output)
      return hidden

    return choice_log_likelihoods(
      params, self.decoder, last_hidden, choices, choice_mask, hidden_of
    )

  def first_pass(self, trainable: Tree, frozen: Tree) -> tuple[Method, Tree]:
    """See `core.types.TwoPass.first_pass`: the LM after the first prompt, without a Connector."""
    vectors = self._prompt(trainable, frozen, 0)
    if vectors is None:
      return ZeroShot(self.decoder), {}
    return PromptTuning(self.decoder, self.settings), {"prompt": {"vectors": vectors}}

  def _prefill(
    self,
    trainable: Tree,
    frozen: Tree,
    prompts: Prompts,
    max_new_tokens: int | Int[Array | np.ndarray, "*B"],
    free_slots: int,
  ) -> tuple[Float[Array, "B 1 D"], _State]:
    """The last pass's hidden state at each prompt's last real position, and all caches."""
    params, connector = frozen["lm"], self._connector(trainable)
    mask, text = prompts["mask"], lm.embed(params, self.decoder, prompts["tokens"])
    x, lm_caches, connector_caches = text, [], []
    for index in range(self.passes):
      prompt = self._prompt(trainable, frozen, index)
      joined, joined_mask = soft_prompt.prepend(prompt, x, mask)
      hidden, lm_cache = lm.prefill(
        params, self.decoder, joined, joined_mask, max_new_tokens, free_slots=free_slots
      )
      hidden = hidden[:, joined.shape[1] - text.shape[1] :]
      lm_caches.append(lm_cache)
      if index + 1 < self.passes:
        output, connector_cache = connector(hidden, mask, free_slots=free_slots)
        connector_caches.append(connector_cache)
        x = self._next_input(text, output)
    return last_real(hidden, mask), _State(tuple(lm_caches), tuple(connector_caches))

  def _pass(self, params, prompt, x, mask):
    """One full pass: input embeddings of the text [B, T, D] -> its hidden states [B, T, D]."""
    joined, joined_mask = soft_prompt.prepend(prompt, x, mask)
    hidden = lm.hidden(params, self.decoder, joined, joined_mask, remat=self.remat)
    return hidden[:, joined.shape[1] - x.shape[1] :]

  def _prompt(self, trainable, frozen, index):
    """The prompt [P, D] of a pass, or None; the later passes share one."""
    if index:
      return soft_prompt.prompt_vectors(trainable, "prompt")
    trained = soft_prompt.prompt_vectors(trainable, "first_prompt")
    if trained is not None:
      return trained
    return soft_prompt.prompt_vectors(frozen["frozen_inputs"], "first_prompt")

  def _next_input(self, text, output):
    """A pass's input embeddings, from the text's and the Connector's output, both [B, T, D]."""
    if self.input_skip:
      output = output + text.astype(jnp.float32)
    return output.astype(text.dtype)

  def _connector(self, trainable: Tree) -> Connector:
    return with_params(self._new_connector, trainable["connector"])

  def _new_connector(self, key: PRNGKeyArray) -> Connector:
    rngs = nnx.Rngs(key)
    return Connector(self.decoder.width, self.connector, self.embedding_rms, rngs)
