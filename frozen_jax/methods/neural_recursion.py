"""The neural recursive LM: LM - Connector - LM (Levine et al., 2022; METHODS 4.2).

Frozen: the LM, and a tuned prompt before the first pass. Trained: `connector` (the small causal
network between the passes, shared by all junctions when there are more than two passes) and,
where wanted, `prompt` before the later passes and `first_prompt` before the first.

Nothing trained stands upstream of the first pass unless `first_prompt` is trained, so that pass
has no backward pass. A token is generated with one single-token step in each pass.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones.cache import KVCache
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Batch, Method, Metrics, Prompts, Tree
from frozen_jax.methods.choices import SideBySide, choice_likelihoods, longest
from frozen_jax.methods.prompt_tuning import PromptTuning, initial_prompt
from frozen_jax.methods.targets import last_real, loss_at_targets
from frozen_jax.modules import soft_prompt
from frozen_jax.modules.connector import Connector, ConnectorCache, ConnectorOptions

_FIRST = ("none", "fixed", "trained")
_LAST = ("none", "trained")


class _State(NamedTuple):
  lms: tuple[KVCache, ...]  # one a pass
  connectors: tuple[ConnectorCache, ...]  # one a junction


@dataclasses.dataclass(frozen=True)
class NeuralRecursion:
  """Two or more passes through one frozen LM, joined by a trained Connector.

  passes             how often the LM runs (2 in the paper)
  input_skip         add the text's own embeddings to what the Connector writes; with its
                     zero-initialised output the recursion starts out as the single-pass LM
  connector          sizes of the Connector
  embedding_rms      root mean square of the LM's token embeddings, the size the Connector writes at
  initial_prompt     [P, D] start of the trained prompt of the later passes, or None
  first_initial      [P, D] start of a trained prompt of the first pass, or None; a first prompt
                     that is not trained comes with the frozen tree as `fixed/first_prompt`
  """

  decoder: DecoderConfig
  connector: ConnectorOptions
  embedding_rms: float
  passes: int = 2
  input_skip: bool = True
  initial_prompt: jax.Array | None = dataclasses.field(default=None, compare=False)
  first_initial: jax.Array | None = dataclasses.field(default=None, compare=False)
  remat: bool = False
  name: str = "neural_recursion"
  encoder_input: str = ""

  def init(self, key: jax.Array) -> Tree:
    """Trained tree: {"connector": ..., "prompt"?: ..., "first_prompt"?: ...}, float32."""
    module = self._fresh_connector(key)
    tree = {"connector": nnx.to_pure_dict(nnx.state(module, nnx.Param))}
    if self.initial_prompt is not None:
      tree["prompt"] = soft_prompt.pure(soft_prompt.SoftPrompt(self.initial_prompt))
    if self.first_initial is not None:
      tree["first_prompt"] = soft_prompt.pure(soft_prompt.SoftPrompt(self.first_initial))
    return tree

  def loss(
    self, trainable: Tree, frozen: Tree, batch: Batch, key: jax.Array | None
  ) -> tuple[jax.Array, Metrics]:
    """See `core.types.Method.loss`; the key drives the Connector's dropout."""
    params, connector = frozen["lm"], self._connector(trainable)
    text = lm.embed(params, self.decoder, batch["tokens"])
    hidden = self._pass(params, self._prompt(trainable, frozen, 0), text, batch["mask"])
    for index in range(1, self.passes):
      junction_key = None if key is None else jax.random.fold_in(key, index)
      written, _ = connector(hidden, batch["mask"], junction_key)
      x = self._next_input(text, written)
      hidden = self._pass(params, self._prompt(trainable, frozen, index), x, batch["mask"])
    return loss_at_targets(params, self.decoder, hidden, batch)

  def taken(self, trainable: Tree, frozen: Tree) -> int:
    """See `core.types.Method.taken`."""
    prompts = (self._prompt(trainable, frozen, index) for index in range(self.passes))
    return max((len(prompt) for prompt in prompts if prompt is not None), default=0)

  def prefill(
    self, trainable: Tree, frozen: Tree, prompts: Prompts, new: int | jax.Array, room: int
  ) -> tuple[jax.Array, Tree]:
    """See `core.types.Method.prefill`."""
    last, state = self._read(trainable, frozen, prompts, new, room)
    return lm.logits(frozen["lm"], self.decoder, last)[:, 0], state

  def decode(
    self, trainable: Tree, frozen: Tree, tokens: jax.Array, state: Tree
  ) -> tuple[jax.Array, Tree]:
    """See `core.types.Method.decode`: one single-token step in each pass."""
    params, connector = frozen["lm"], self._connector(trainable)
    text = lm.embed(params, self.decoder, tokens[:, None])
    x, lms, connectors = text, [], []
    for index in range(self.passes):
      hidden, cache = lm.step(params, self.decoder, x, state.lms[index])
      lms.append(cache)
      if index + 1 < self.passes:
        written, cache = connector.step(hidden, state.connectors[index])
        connectors.append(cache)
        x = self._next_input(text, written)
    return lm.logits(params, self.decoder, hidden)[:, 0], _State(tuple(lms), tuple(connectors))

  def likelihoods(
    self,
    trainable: Tree,
    frozen: Tree,
    prompts: Prompts,
    choices: jax.Array,
    choice_mask: jax.Array,
  ) -> jax.Array:
    """See `core.types.Method.likelihoods`: the choices go through each pass side by side."""
    params, connector = frozen["lm"], self._connector(trainable)
    last, state = self._read(trainable, frozen, prompts, longest(choice_mask), 0)

    def read(behind: SideBySide) -> jax.Array:
      text = x = lm.embed(params, self.decoder, behind.tokens)
      places, among = behind.places, behind.among
      for index in range(self.passes):
        hidden = lm.branch(params, self.decoder, x, state.lms[index], places, among)
        if index + 1 < self.passes:
          written = connector.branch(hidden, state.connectors[index], among)
          x = self._next_input(text, written)
      return hidden

    return choice_likelihoods(params, self.decoder, last, choices, choice_mask, read)

  def first(self, trainable: Tree, frozen: Tree) -> tuple[Method, Tree]:
    """See `core.types.TwoPass.first`: the LM behind the first prompt, without a Connector."""
    vectors = self._prompt(trainable, frozen, 0)
    return PromptTuning(self.decoder, None), {} if vectors is None else {
      "prompt": {"vectors": vectors}
    }

  def _read(
    self, trainable: Tree, frozen: Tree, prompts: Prompts, new: int | jax.Array, room: int
  ) -> tuple[jax.Array, _State]:
    """The last pass's hidden state at each prompt's last real position [B, 1, D], and all caches.

    `new` and `room` as `backbones.decoder.prefill` has them.
    """
    params, connector = frozen["lm"], self._connector(trainable)
    mask, text = prompts["mask"], lm.embed(params, self.decoder, prompts["tokens"])
    x, lms, connectors = text, [], []
    for index in range(self.passes):
      prompt = self._prompt(trainable, frozen, index)
      joined, joined_mask = soft_prompt.prepend(prompt, x, mask)
      hidden, cache = lm.prefill(params, self.decoder, joined, joined_mask, new, room=room)
      hidden = hidden[:, joined.shape[1] - text.shape[1] :]
      lms.append(cache)
      if index + 1 < self.passes:
        written, cache = connector(hidden, mask, room=room)
        connectors.append(cache)
        x = self._next_input(text, written)
    return last_real(hidden, mask), _State(tuple(lms), tuple(connectors))

  def _pass(self, params, prompt, x, mask):
    """One full pass: input embeddings of the text [B, T, D] -> its hidden states [B, T, D]."""
    joined, joined_mask = soft_prompt.prepend(prompt, x, mask)
    hidden = lm.hidden(params, self.decoder, joined, joined_mask, remat=self.remat)
    return hidden[:, joined.shape[1] - x.shape[1] :]

  def _prompt(self, trainable, frozen, index):
    """The prompt of a pass: later passes share one; the first may be fixed or trained."""
    if index:
      return soft_prompt.vectors(trainable, "prompt")
    trained = soft_prompt.vectors(trainable, "first_prompt")
    fixed = soft_prompt.vectors(frozen["fixed"], "first_prompt")
    return fixed if trained is None else trained

  def _next_input(self, text, written):
    if self.input_skip:
      written = written + text.astype(jnp.float32)
    return written.astype(text.dtype)

  def _fresh_connector(self, key: jax.Array) -> Connector:
    rngs = nnx.Rngs(key)
    return Connector(self.decoder.width, self.connector, self.embedding_rms, rngs)

  def _connector(self, trainable: Tree) -> Connector:
    """The Connector as a module around the trained numbers."""
    graph, state = nnx.split(nnx.eval_shape(self._fresh_connector, jax.random.key(0)), nnx.Param)[
      :2
    ]
    nnx.replace_by_pure_dict(state, trainable["connector"])
    return nnx.merge(graph, state)


def build(base: Base, options: Mapping[str, Any]) -> NeuralRecursion:
  """The recursive LM as the experiment's `recursion` and `prompt` options say."""
  recursion = options["recursion"]
  for name, choices in (("first_prompt", _FIRST), ("last_prompt", _LAST)):
    if recursion[name] not in choices:
      raise UserError(f"recursion.{name} is {recursion[name]!r}; give one of {', '.join(choices)}")
  if recursion["passes"] < 2:
    raise UserError(f"recursion.passes is {recursion['passes']}; a recursion has 2 or more")
  try:
    connector = ConnectorOptions(**recursion["connector"], zero_output=recursion["input_skip"])
  except ValueError as error:
    raise UserError(f"recursion.connector: {error}") from None
  start = None
  if "trained" in (recursion["first_prompt"], recursion["last_prompt"]):
    start = initial_prompt(base, options)
  return NeuralRecursion(
    base.config,
    connector,
    embedding_rms=base.embedding_rms,
    passes=recursion["passes"],
    input_skip=recursion["input_skip"],
    initial_prompt=start if recursion["last_prompt"] == "trained" else None,
    first_initial=start if recursion["first_prompt"] == "trained" else None,
    remat=options["model"]["remat"],
  )
