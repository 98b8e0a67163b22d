"""The programs of a stage, compiled ahead of time for devices that this machine does not have."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from frozen_jax.backbones import decoder, encoder
from frozen_jax.core.types import Tree
from frozen_jax.sharding.batch import rows_sharding
from frozen_jax.sharding.rules import batch_sharding, replicated, row_groups, shardings
from frozen_jax.tools.abstract_stage import AbstractStage, prompt_shapes, target_shapes
from frozen_jax.tools.model_sizes import Models
from frozen_jax.training.optimizer import learning_rates, make_optimizer
from frozen_jax.training.state import initial_state
from frozen_jax.training.step import make_train_step

SLOTS = 32  # a cache's length is a multiple of it


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The sizes of a program: rows of a batch, tokens of a text, targets of a row, new tokens."""

  rows: int
  length: int
  targets: int
  max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class Programs:
  """The training step, the prefill and the decoding step of a stage on a mesh.

  Each is lowered as `jax.jit(...).lower(...)` does; nothing is computed, and no weight is read.
  """

  stage: AbstractStage
  models: Models
  mesh: Mesh
  sizes: Sizes

  def all(self) -> dict[str, Callable[[], Any]]:
    """The programs by name; each is compiled when it is called."""
    programs: dict[str, Callable[[], Any]] = {}
    if jax.tree.leaves(self._trained):
      programs["train_step"] = lambda: self.train_step().compile()
    programs["prefill"] = lambda: self._compiled_prefill
    programs["decode_step"] = lambda: self.decode_step().compile()
    return programs

  def train_step(self) -> Any:
    """The update of the trained tree."""
    settings = self.stage.settings
    rates = learning_rates(settings.train, self._method.learning_rates, self._trained)
    optimizer = make_optimizer(settings.train, rates, self._method.no_decay)
    step = make_train_step(self._method, optimizer, settings.train.accumulate, self.mesh)
    start = functools.partial(initial_state, optimizer)
    state = self._replicated(jax.eval_shape(start, self._trained, jax.random.key(0)))
    targets = self._split(target_shapes(self.sizes.rows, self.sizes.targets))
    return step.lower(state, self.frozen, self._prompts | targets)

  def prefill(self) -> Any:
    """Reading the prompts, up to the next token's logits and the cache."""
    return self._prefill.lower(self._trained, self.frozen, self._prompts)

  def decode_step(self) -> Any:
    """One more token of each row."""
    _, shapes = jax.eval_shape(self._prefill, self._trained, self.frozen, self._prompts)
    _, places = self._compiled_prefill.output_shardings
    places = jax.tree.map(lambda place: rows_sharding(place, self.sizes.rows), places)
    decode = jax.jit(self._method.decode, donate_argnums=3)
    tokens = self._split(jax.ShapeDtypeStruct((self.sizes.rows,), jnp.int32))
    return decode.lower(self._trained, self.frozen, tokens, _placed(shapes, places))

  @functools.cached_property
  def _compiled_prefill(self) -> Any:
    return self.prefill().compile()

  @functools.cached_property
  def _prefill(self) -> Any:
    width = self.sizes.length + self._virtual + self.sizes.max_new_tokens
    slots = -(-width // SLOTS) * SLOTS - self.sizes.length - self._virtual

    def prefill(trained: Tree, frozen: Tree, prompts: Mapping[str, Any]) -> tuple[Any, Any]:
      new = jnp.int32(self.sizes.max_new_tokens)
      return self._method.prefill(trained, frozen, prompts, new, slots)

    return jax.jit(prefill)

  @functools.cached_property
  def _virtual(self) -> int:
    return self.stage.traits(self.models)[0]

  @functools.cached_property
  def _method(self) -> Any:
    return self.stage.method(self.models, self.frozen)

  @functools.cached_property
  def _trained(self) -> Tree:
    return self._replicated(self.stage.trained(self.models))

  @functools.cached_property
  def frozen(self) -> Tree:
    """The shapes of the frozen weights on the mesh, as they are loaded."""
    tables = {"lm": decoder.PARAM_AXES, "encoder": encoder.PARAM_AXES}
    frozen = {"frozen_inputs": self._replicated(self.stage.frozen(self.models)["frozen_inputs"])}
    for name, weights in self.models.loaded_shapes(self.stage.settings.model).items():
      frozen[name] = _placed(weights, shardings(weights, tables[name], self.mesh))
    return frozen

  @functools.cached_property
  def _prompts(self) -> dict[str, Any]:
    return self._split(stage_prompts(self.stage, self.models, self.sizes.rows, self.sizes.length))

  def _split(self, tree: Tree) -> Tree:
    """Arrays of all rows, split over the mesh."""
    return _placed(tree, jax.tree.map(lambda _: batch_sharding(self.mesh), tree))

  def _replicated(self, tree: Tree) -> Tree:
    return _placed(tree, jax.tree.map(lambda _: replicated(self.mesh), tree))


def stage_prompts(stage: AbstractStage, models: Models, rows: int, length: int) -> dict[str, Any]:
  """The shapes of the prompts that a stage's method reads, with states of the encoder if it may."""
  cached = stage.traits(models)[1] == "encoder_states"
  encoder_length = min(stage.settings.data.encoder_length, length)
  return prompt_shapes(models, rows, length, encoder_length, cached)


def whole_rows(rows: int, mesh: Mesh) -> int:
  """The rows of a batch, raised to a multiple of the groups that the mesh splits them into."""
  groups = row_groups(mesh)
  return -(-rows // groups) * groups


def _placed(tree: Tree, places: Tree) -> Tree:
  place = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
  return jax.tree.map(place, tree, places)
