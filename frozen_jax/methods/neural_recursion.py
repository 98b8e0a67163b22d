"""The neural recursive LM: LM - Connector - LM (Levine et al., 2022; docs/paper.md, 4.2 and 4.3).

Frozen: the LM, and a tuned prompt before the first pass. Trained: `connector` (the small network
between the passes, shared by all junctions when there are more than two passes) and, where wanted,
`prompt` before the later passes and `first_prompt` before the first.

In the paper a pass hands on its final hidden states, and the next one starts from the embeddings.
Here a pass may be read, and the next one started, between any two layers (`layer_passes`). With one
pass the Connector stands between two layers of the LM and nothing runs twice: the control for what
a second pass is worth.

Nothing trained is upstream of the first pass unless `first_prompt` is trained, so that pass has no
backward pass. A token is generated with one single-token step in each pass.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Method, PassCosts, Prompts, Tree
from frozen_jax.methods.junction import CausalJunction, ConnectorByPosition
from frozen_jax.methods.layer_passes import Added, Junction, LayerPasses, NoConnector
from frozen_jax.methods.layered import Layered
from frozen_jax.methods.prompt_tuning import PromptTuning, initial_prompt
from frozen_jax.methods.recursion_settings import RecursionSettings, layers_of
from frozen_jax.methods.zero_shot import ZeroShot
from frozen_jax.modules import soft_prompt
from frozen_jax.modules.connector import Connector, ConnectorConfig
from frozen_jax.modules.nnx_params import module_params, with_params
from frozen_jax.modules.position_connectors import (
  ConcatConnector,
  LinearConnector,
  MixConnector,
  PositionConnector,
  TokensConnector,
)
from frozen_jax.modules.settings import PromptSettings, check_at_input


@dataclasses.dataclass(frozen=True)
class NeuralRecursion(Layered):
  """Passes through one frozen LM, joined by a trained Connector.

  layers         which of the LM's layers run how often
  kind           of the Connector, one of `recursion_settings.CONNECTORS`
  connector      sizes of the paper's Connector, a small Transformer
  write_rms      root mean square of the stream that the Connector writes to: its output's size
  settings       how long the trained prompts are and where they start
  input_skip     add what the Connector writes to the stream that is there; with a zero-initialised
                 output the recursion starts out as the single-pass LM
  first_prompt   before the first pass: "none", "frozen" (it comes with the frozen tree as
                 `frozen_inputs/first_prompt`) or "trained"
  last_prompt    before the later passes: "none" or "trained". Within the stack its vectors, times
                 `prompt_unit`, are added to the states of the first prompt there
  prompt_unit    how much larger the stream is where the later prompt stands than the embeddings
  caches_first_pass  whether batches hold what nothing trained changes
  """

  layers: LayerPasses
  connector: ConnectorConfig
  write_rms: float
  settings: PromptSettings = dataclasses.field(compare=False)
  kind: str = "transformer"
  input_skip: bool = True
  first_prompt: str = "frozen"
  last_prompt: str = "trained"
  prompt_unit: float = 1.0
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
  frozen_inputs: ClassVar[tuple[str, ...]] = ("first_prompt",)
  without_inputs: ClassVar[str] = "recursion.first_prompt=none"
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
    check_at_input(prompt, cls.name, "recursion.write to the layer")
    if prompt.per_task:
      raise UserError(f"{cls.name} has one prompt for all data sets; set prompt.per_task=False")
    sizes = dataclasses.asdict(recursion.connector)
    kind = sizes.pop("kind")
    write, read = layers_of(recursion, base.config.layers)
    write_rms = base.stream_rms(write) if write else base.embedding_rms
    return cls(
      LayerPasses(base.config, write, read, recursion.passes, remat),
      ConnectorConfig(**sizes, zero_output=recursion.input_skip),
      write_rms,
      prompt,
      kind=kind,
      input_skip=recursion.input_skip,
      first_prompt=recursion.first_prompt,
      last_prompt=recursion.last_prompt,
      prompt_unit=write_rms / base.embedding_rms,
      # One pass at the embeddings has nothing before what is trained.
      caches_first_pass=recursion.cache_first_pass and (write > 0 or recursion.passes > 1),
    )

  @property
  def decoder(self) -> DecoderConfig:
    """Of the frozen LM."""
    return self.layers.decoder

  @classmethod
  def inputs_read(cls, sections: Mapping[str, Any]) -> Mapping[str, bool]:
    """See `core.types.Method.inputs_read`; within the stack the later prompt is added to it."""
    recursion = sections["recursion"]
    if recursion.first_prompt != "frozen":
      return {}
    return {"first_prompt": recursion.write != "embeddings"}

  @property
  def part_positions(self) -> Mapping[str, str]:
    """See `core.types.Method.part_positions`.

    Within the stack a later prompt is added to the states of the first one, if there is one.
    """
    layers = self.layers
    later = soft_prompt.position(layers.write)
    if layers.write and self.first_prompt != "none":
      later += ", added to the first prompt's states"
    read = "the last layer" if layers.read is None else f"layer {layers.read}"
    connector = f"at layer {layers.write}, in one pass"
    if layers.passes > 1:
      connector = f"from {read} to layer {layers.write}"
    return {"first_prompt": soft_prompt.position(), "prompt": later, "connector": connector}

  def init(self, base: Base, key: PRNGKeyArray) -> Tree:
    """Trained tree: {"connector"?: ..., "prompt"?: ..., "first_prompt"?: ...}, float32.

    At the embeddings both prompts, where they are trained, start from the same vectors. Within the
    stack the later one starts as the first one's own states there.
    """
    tree = {}
    if self.kind != "none":
      tree["connector"] = module_params(self._new_connector(key))
    start = functools.cache(lambda: initial_prompt(base, self.settings, key))
    if self.first_prompt == "trained":
      tree["first_prompt"] = soft_prompt.prompt_params(start())
    if self.last_prompt == "trained":
      vectors = start() if not self.layers.write else self._late_start(base, start)
      tree["prompt"] = soft_prompt.prompt_params(vectors)
    return tree

  def num_virtual_tokens(self, trainable: Tree, frozen: Tree) -> int:
    """See `core.types.Method.num_virtual_tokens`."""
    prompts = (
      self.first_prompt_of(trainable, frozen),
      soft_prompt.prompt_vectors(trainable, "prompt"),
    )
    return max((len(prompt) for prompt in prompts if prompt is not None), default=0)

  @property
  def pass_costs(self) -> PassCosts:
    """See `core.types.TwoPass`."""
    return self.layers.costs

  def first_pass(self, trainable: Tree, frozen: Tree) -> tuple[Method, Tree]:
    """See `core.types.TwoPass.first_pass`: the LM after the first prompt, without a Connector."""
    vectors = self.first_prompt_of(trainable, frozen)
    if vectors is None:
      return ZeroShot(self.decoder), {}
    return PromptTuning(self.decoder, self.settings), {"prompt": {"vectors": vectors}}

  def added(
    self, trainable: Tree, frozen: Tree, prompts: Prompts, key: PRNGKeyArray | None
  ) -> Added:
    """See `Layered.added`."""
    del prompts
    later_prompt = functools.partial(self._later_prompt, trainable)
    junction = self.junction(trainable, frozen, key)
    return Added(self.first_prompt_of(trainable, frozen), later_prompt, junction)

  def first_prompt_of(self, trainable: Tree, frozen: Tree) -> Float[Array, "P D"] | None:
    """See `Layered.first_prompt_of`."""
    if self.first_prompt == "none":
      return None
    of = trainable if self.first_prompt == "trained" else frozen["frozen_inputs"]
    return soft_prompt.prompt_vectors(of, "first_prompt")

  def _later_prompt(
    self, trainable: Tree, below: Float[Array, "B T D"], first: Float[Array, "*B _ D"] | None
  ) -> Float[Array, "*_ _ D"] | None:
    """The prompt of the later passes; first: the first prompt where they start.

    Raises UserError for two prompts of other lengths that are to be added.
    """
    del below
    vectors = soft_prompt.prompt_vectors(trainable, "prompt")
    if not self.layers.write:
      return vectors
    if vectors is None:
      return first
    late = vectors * self.prompt_unit
    if first is None:
      return late
    if first.shape[-2] != len(late):
      raise UserError(
        f"the first prompt has {first.shape[-2]} vectors and the later one, which is added to its"
        f" states, {len(late)}; set config.prompt.length={first.shape[-2]}"
      )
    return first + late

  def _late_start(
    self, base: Base, start: Callable[[], Float[Array, "P D"]]
  ) -> Float[Array, "P D"]:
    """Where the vectors of a prompt within the stack start."""
    if self.first_prompt != "none":
      return jnp.zeros((self.settings.length, self.decoder.width), jnp.float32)
    states = self.layers.prompt_below(base.params, start())
    return states.astype(jnp.float32) / self.prompt_unit

  def junction(self, trainable: Tree, frozen: Tree, key: PRNGKeyArray | None = None) -> Junction:
    """See `Layered.junction`."""
    if self.kind == "none":
      return NoConnector()
    connector = with_params(self._new_connector, trainable["connector"])
    if isinstance(connector, Connector):
      return CausalJunction(connector, self.input_skip, key)
    is_normed = self.layers.passes > 1 and self.layers.read is None
    return ConnectorByPosition(connector, frozen["lm"], self.decoder, is_normed)

  def _new_connector(self, key: PRNGKeyArray) -> Connector | PositionConnector:
    width = self.decoder.width
    if self.kind == "linear":
      return LinearConnector(width, self.write_rms)
    if self.kind == "concat":
      return ConcatConnector(width, self.write_rms)
    if self.kind == "mix":
      return MixConnector(width)
    if self.kind == "tokens":
      return TokensConnector(width, self.write_rms)
    return Connector(width, self.connector, self.write_rms, nnx.Rngs(key))
