"""A tuned model's prefill and step as StableHLO (`jax.export`), for programs without frozen_jax.

  prefill.bin, step.bin   serialised programs of kilobytes, for any number and length of texts
  trained.safetensors     {"trained/...", "frozen_inputs/..."}: this adapter
  frozen.safetensors      {"lm/...", "encoder/..."}: the same bytes in all exports on one LM
  tokenizer/, encoder_tokenizer/
  stablehlo.json          arguments, layouts, digests (`manifest`)

    prefill(trained, frozen, {"tokens" [b, t], "mask" [b, t], ...}, max_new_tokens) -> logits, state
    step(trained, frozen, tokens [b], state) -> logits [b, V], state

Both weights are dicts by path, `state` is a list of arrays with the rows first. One module serves
all platforms: it is traced without the kernels and layouts that are of one of them.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax import export

from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import AutoregressiveModel, Prompts, Tree
from frozen_jax.export.about import about_model, adapter_tree, layout
from frozen_jax.export.manifest import write_manifest
from frozen_jax.models.inputs import encoder_inputs
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.sharding.activations import traced_for_any_platform
from frozen_jax.text.tokenizer_files import save_tokenizer

PLATFORMS = ("cpu", "cuda", "tpu")
_SHAPES = "b, t"  # rows and text positions
_CONSTRAINTS = ("t >= 2",)
_ADAPTER = "--config.export.format=adapter holds it, for frozen_jax.load_adapter"
Specs = Mapping[str, jax.ShapeDtypeStruct]


def write_stablehlo(folder: pathlib.Path, model: TunedModel) -> None:
  """Writes programs, weights and tokenizers into a folder.

  Raises UserError for quantised weights, a model without a tokenizer, answers that take more than
  one completion, and programs that cannot be exported.
  """
  _check(model)
  lm, uses_encoder = model.lm, bool(model.method.encoder_input)
  adapter = paths.flatten(adapter_tree(model))
  frozen = {"lm": lm.params} | ({"encoder": lm.encoder.params} if uses_encoder else {})
  weights = paths.flatten(frozen)
  _check_weights(weights)
  inputs, names = _inputs(model)
  prefill, step = export_programs(
    model.method, adapter, weights, inputs, model.generation.max_new_tokens
  )
  for name, program in (("prefill", prefill), ("step", step)):
    (folder / f"{name}.bin").write_bytes(program.serialize())
  _write_arrays(folder / "trained.safetensors", adapter)
  _write_arrays(folder / "frozen.safetensors", weights)
  save_tokenizer(lm.tokenizer, folder / "tokenizer")
  if uses_encoder:
    save_tokenizer(lm.encoder.tokenizer, folder / "encoder_tokenizer")
  about = about_model(model) | {
    "platforms": list(prefill.platforms),
    "calling_convention_version": prefill.calling_convention_version,
    "jax": jax.__version__,
    "context": lm.config.context,
    "inputs": names,
    "state": [_described(aval) for aval in prefill.out_avals[1:]],
    "trained": layout(adapter),
    "frozen": layout(weights),
  }
  write_manifest(folder, "stablehlo", about)


def export_programs(
  method: AutoregressiveModel,
  adapter: Mapping[str, jax.Array],
  weights: Mapping[str, jax.Array],
  inputs: Specs,
  free_slots: int,
) -> tuple[export.Exported, export.Exported]:
  """Prefill and step of a method.

  Args:
    adapter, weights: by path, of which the shapes count.
    inputs: the arguments of `core.types.Prompts`; their shapes may be symbolic.
    free_slots: how many tokens may follow a text.

  Raises UserError where the program needs to know a size that the inputs leave open.
  """
  structures = []

  def prefill(
    adapter: Tree, weights: Tree, prompts: Prompts, max_new_tokens: jax.Array
  ) -> tuple[jax.Array, list[jax.Array]]:
    logits, state = method.prefill(*_trees(adapter, weights), prompts, max_new_tokens, free_slots)
    leaves, structure = jax.tree.flatten(state)
    structures.append(structure)
    return logits, leaves

  def step(
    adapter: Tree, weights: Tree, tokens: jax.Array, leaves: list[jax.Array]
  ) -> tuple[jax.Array, list[jax.Array]]:
    state = jax.tree.unflatten(structures[-1], leaves)
    logits, state = method.decode(*_trees(adapter, weights), tokens, state)
    return logits, jax.tree.leaves(state)

  specs = [{path: _spec(leaf) for path, leaf in tree.items()} for tree in (adapter, weights)]
  try:
    with traced_for_any_platform():
      one = _export(prefill)(*specs, dict(inputs), jax.ShapeDtypeStruct((), jnp.int32))
      tokens = jax.ShapeDtypeStruct(inputs["tokens"].shape[:1], jnp.int32)
      state = [_spec(aval) for aval in one.out_avals[1:]]
      return one, _export(step)(*specs, tokens, state)
  except (jax.errors.InconclusiveDimensionOperation, NotImplementedError, ValueError) as error:
    reason = str(error).strip().splitlines()[0]
    raise UserError(
      f"this model has no program for texts of any length ({reason}); {_ADAPTER}"
    ) from error


def _export(function: Any) -> Any:
  return export.export(jax.jit(function), platforms=PLATFORMS)


def _trees(adapter: Tree, weights: Tree) -> tuple[Tree, Tree]:
  """What a method takes as `trainable` and `frozen`."""
  small = {"trained": {}, "frozen_inputs": {}} | paths.unflatten(adapter)
  return small["trained"], paths.unflatten(weights) | {"frozen_inputs": small["frozen_inputs"]}


def _inputs(model: TunedModel) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, Any]]:
  """The arguments of `prefill` besides weights, and how the JSON file describes them."""
  rows, length = export.symbolic_shape(_SHAPES, constraints=_CONSTRAINTS)
  prompt = model.question_task.prompt({"id": "", "question": "?"})
  shapes: dict[str, tuple[Any, ...]] = {"tokens": (rows, length), "mask": (rows, length)}
  encoder = encoder_inputs(model.lm, model.method, model.inputs)
  if encoder is not None:
    shapes |= dict.fromkeys(("encoder_tokens", "encoder_mask"), (rows, encoder.length))
  if prompt.task is not None:
    shapes["task"] = (rows,)
  specs = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}
  return specs, {name: _described(spec) for name, spec in specs.items()}


def _described(spec: Any) -> dict[str, Any]:
  sizes = [size if isinstance(size, int) else str(size) for size in spec.shape]
  return {"shape": sizes, "dtype": str(spec.dtype)}


def _spec(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _write_arrays(path: pathlib.Path, arrays: Mapping[str, jax.Array]) -> None:
  leaves = {name: np.asarray(leaf, order="C") for name, leaf in arrays.items()}
  try:
    safetensors.numpy.save_file(leaves, path)
  except safetensors.SafetensorError as error:  # a full disk too
    raise OSError(str(error)) from error


def _check(model: TunedModel) -> None:
  if model.lm.tokenizer is None:
    raise UserError("this model has no tokenizer, which the export holds too; add its files")
  if model.inference is not None:
    raise UserError(
      f"{model.method.name} answers here by more than one completion (a gate, or candidates that it"
      f" reads), and a program is one; {_ADAPTER}"
    )


def _check_weights(weights: Mapping[str, Any]) -> None:
  """UserError for weights that are not plain arrays."""
  if not all(isinstance(leaf, jax.Array) for leaf in weights.values()):
    raise UserError(
      "a stablehlo export has plain weights, and these are quantised; leave out"
      " --config.model.quantize for this command"
    )
