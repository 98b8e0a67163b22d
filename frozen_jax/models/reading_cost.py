"""What a tuned model computes to read a text, counted from shapes (`core.flop_count`)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.backbones import decoder, encoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.core.flop_count import flops
from frozen_jax.core.types import Method, Tree
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.sharding.activations import traced_for_any_platform


def reading_flops(model: TunedModel, length: int, encoder_length: int = 0) -> float:
  """FLOPs from a text of `length` tokens to the logits of the next one, with float32 weights.

  encoder_length: of the text that a text encoder reads. As `tools.cost` counts them: neither
  quantisation nor the kernels of a platform are part of it. Nothing is compiled. Raises ValueError
  as `flops`.
  """
  lm = model.lm
  encoder_config = lm.encoder.config if model.method.encoder_input else None
  trees = _shapes((model.trained, model.frozen_inputs))
  shapes, treedef = jax.tree.flatten(trees)
  return _counted(
    model.method, lm.config, encoder_config, tuple(shapes), treedef, (length, encoder_length)
  )


@functools.cache
def _counted(
  method: Method,
  lm: DecoderConfig,
  encoder_config: EncoderConfig | None,
  shapes: tuple[jax.ShapeDtypeStruct, ...],
  treedef: Any,
  lengths: tuple[int, int],
) -> float:
  """`reading_flops`; shapes, treedef: of (the trained tree, the frozen inputs)."""
  trained, frozen_inputs = jax.tree.unflatten(treedef, shapes)
  frozen = {"lm": decoder.param_shapes(lm), "frozen_inputs": frozen_inputs}
  prompts = {name: _ints(lengths[0]) for name in ("tokens", "mask")} | {"task": _ints()}
  if encoder_config is not None:
    frozen["encoder"] = encoder.param_shapes(encoder_config)
    prompts |= {name: _ints(lengths[1]) for name in ("encoder_tokens", "encoder_mask")}

  def read(trained: Tree, frozen: Tree, prompts: Tree) -> jax.Array:
    return method.prefill(trained, frozen, prompts, 0, 0)[0]

  with traced_for_any_platform():
    return flops(read, trained, frozen, prompts)


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((1, *shape), jnp.int32)


def _shapes(tree: Tree) -> Tree:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
