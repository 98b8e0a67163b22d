"""PEFT parameters within the layers of a frozen decoder: LoRA, adapters, prefixes.

A tree of float32 arrays, stacked over the layers like the weights; each part is optional:

  lora/{attn|mlp}/{q,k,v,o,gate,up,down}/{a [L, in, rank], b [L, rank, out]}   Hu et al. 2021
  adapters/{attn|mlp}/{down {kernel [L, D, d], bias [L, d]}, up {kernel [L, d, D], bias [L, D]}}
                                                                       Houlsby et al. 2019
  prefix/{k, v} [L, P, K, C]                                           Li and Liang 2021

LoRA adds (x a) b to the output of a linear layer, and never computes a b. An adapter adds its
bottleneck to the output of attention or of the MLP. The keys and values of a prefix come before
those of the text, whose positions start at P; the trained keys count as rotated already.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from frozen_jax.core.types import HostOrDevice

PeftParams = dict[str, Any]  # of one layer, or stacked over the layers


def add_lora(
  output: Float[Array, "*N out"],
  x: Float[Array, "*N in"],
  peft: PeftParams,
  block: str,
  name: str,
) -> Float[Array, "*N out"]:
  """The output of the linear layer `block`/`name` for x, plus its LoRA update if there is one."""
  lora = peft.get("lora", {}).get(block, {}).get(name)
  if lora is None:
    return output
  return output + (x.astype(jnp.float32) @ lora["a"]) @ lora["b"]


def apply_adapter(
  output: Float[Array, "B T D"], peft: PeftParams, block: str
) -> Float[Array, "B T D"]:
  """The output of attention or of the MLP, through its adapter if there is one."""
  adapter = peft.get("adapters", {}).get(block)
  if adapter is None:
    return output
  inner = jax.nn.gelu(output @ adapter["down"]["kernel"] + adapter["down"]["bias"])
  return output + inner @ adapter["up"]["kernel"] + adapter["up"]["bias"]


def prepend_prefix(
  k: Float[Array, "B T K C"],
  v: Float[Array, "B T K C"],
  prefix: dict[str, Float[Array, "P K C"]] | None,
) -> tuple[Float[Array, "B S K C"], Float[Array, "B S K C"]]:
  """Keys and values of a layer with those of a prefix before them: S = P + T positions."""
  if prefix is None:
    return k, v

  def prepended(prefix: Float[Array, "P K C"], text: Float[Array, "B T K C"]) -> Array:
    # Cast after it is repeated: so its gradient is summed over the rows in float32.
    rows = jnp.broadcast_to(prefix.astype(jnp.float32), (text.shape[0], *prefix.shape))
    return jnp.concatenate([rows.astype(text.dtype), text], axis=1)

  return prepended(prefix["k"], k), prepended(prefix["v"], v)


def prefix_length(peft: PeftParams | None) -> int:
  """P, 0 without a prefix."""
  return peft["prefix"]["k"].shape[1] if peft and "prefix" in peft else 0


def prepend_mask(mask: Int[HostOrDevice, "B T"], count: int) -> Int[Array, "B S"]:
  """The mask with ones for `count` positions before it: S = count + T."""
  return jnp.pad(mask, ((0, 0), (count, 0)), constant_values=1)


def without_prefix(peft: PeftParams | None) -> PeftParams:
  """The parts that a pass after a cache needs: the cache contains the prefix."""
  return {name: part for name, part in (peft or {}).items() if name != "prefix"}


def of_layers(peft: PeftParams | None, layers: range) -> PeftParams:
  """The trained parameters within these layers."""
  return jax.tree.map(lambda a: a[layers.start : layers.stop], peft or {})
