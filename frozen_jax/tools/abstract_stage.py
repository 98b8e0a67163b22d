"""A stage of a run without weights: its method, and the shapes of its frozen and trained trees."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.backbones import decoder, encoder
from frozen_jax.core.types import Tree
from frozen_jax.methods import METHODS
from frozen_jax.models.inputs import datasets_of
from frozen_jax.pipelines.experiment import RunSettings, StageSettings
from frozen_jax.tools.model_sizes import Models


class AbstractModel:
  """What a method's builder sees of a frozen model while a program is traced."""

  embedding_rms = 1.0  # a constant of the program, whatever its value
  tokenizer = None

  def __init__(
    self, network: Any, config: Any, params: Tree, encoder: "AbstractModel | None" = None
  ):
    self._network, self.config, self.params, self.encoder = network, config, params, encoder

  def stream_rms(self, layer: int) -> float:
    del layer
    return 1.0

  def embed(self, token_ids: jax.Array) -> jax.Array:
    return self._network.embed(self.params, self.config, token_ids)


@dataclasses.dataclass(frozen=True)
class AbstractStage:
  """One stage of a run: its programs, for models of any depth."""

  run: RunSettings
  settings: StageSettings

  @classmethod
  def of(cls, run: RunSettings, name: str) -> "AbstractStage":
    stage = run.stage(name)
    # A prompt's text decides where it starts, and needs a tokenizer.
    prompt = dataclasses.replace(stage.prompt, text="")
    sections = {k: prompt if k == "prompt" else one for k, one in stage.sections.items()}
    if prompt.per_task:
      stage = stage.with_data(datasets=datasets_of(stage.data))
    return cls(run, dataclasses.replace(stage, prompt=prompt, sections=sections))

  def without_method(self) -> "AbstractStage":
    """The frozen LM without a method."""
    bare = dataclasses.replace(self.settings, method="zero_shot", sections={}, frozen_inputs={})
    return AbstractStage(self.run, bare)

  def base(self, models: Models, frozen: Tree) -> "AbstractModel":
    """The frozen models as the method's builder sees them."""
    network = None
    if models.encoder is not None:
      network = AbstractModel(encoder, models.encoder, frozen["encoder"])
    return AbstractModel(decoder, models.lm, frozen["lm"], network)

  def method(self, models: Models, frozen: Tree) -> Any:
    stage, base = self.settings, self.base(models, frozen)
    return METHODS[stage.method].build(
      base, stage.sections, remat=stage.model.remat, datasets=stage.data.datasets
    )

  def trained(self, models: Models) -> Tree:
    """The shapes of what is trained."""

    def start(frozen: Tree) -> Tree:
      return self.method(models, frozen).init(self.base(models, frozen), jax.random.key(0))

    return jax.eval_shape(start, models.shapes())

  def frozen(self, models: Models) -> Tree:
    """The shapes of all that the method takes as `frozen`."""
    frozen_inputs = {}
    for key, link in self.settings.frozen_inputs.items():
      name, _, part = link.partition("/")
      frozen_inputs[key] = AbstractStage.of(self.run, name).trained(models)[part]
    return models.shapes() | {"frozen_inputs": frozen_inputs}

  def traits(self, models: Models) -> tuple[int, str]:
    """Positions of the context that it takes before the text, and what it reads of an encoder."""
    traits = []

    def trace(trained: Tree, frozen: Tree) -> None:
      method = self.method(models, frozen)
      traits.append((int(method.num_virtual_tokens(trained, frozen)), method.encoder_input))

    jax.eval_shape(trace, self.trained(models), self.frozen(models))
    return traits[0]


def prompt_shapes(
  models: Models, rows: int, length: int, encoder_length: int, cached: bool = False
) -> dict[str, Any]:
  """The shapes of `core.types.Prompts`, with the encoder's side where there is an encoder.

  cached: its states stand in place of its tokens.
  """
  ints = lambda *shape: jax.ShapeDtypeStruct((rows, *shape), jnp.int32)
  prompts = {"tokens": ints(length), "mask": ints(length), "task": ints()}
  if models.encoder is not None:
    prompts |= {name: ints(encoder_length) for name in ("encoder_tokens", "encoder_mask")}
    if cached:
      shape = (*prompts.pop("encoder_tokens").shape, models.encoder.width)
      prompts["encoder_states"] = jax.ShapeDtypeStruct(shape, jnp.float32)
  return prompts


def target_shapes(rows: int, targets: int) -> dict[str, Any]:
  """The shapes of what a training batch has besides, for so many targets a row."""
  names = ("target_positions", "target_ids", "target_mask")
  return {name: jax.ShapeDtypeStruct((rows, targets), jnp.int32) for name in names}
