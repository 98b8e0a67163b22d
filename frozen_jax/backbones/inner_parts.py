"""Small trained parts within the layers of a frozen decoder: LoRA, adapters, prefixes.

A tree of float32 arrays, stacked over the layers like the weights; each part may be missing:

  lora/{attn|mlp}/{q,k,v,o,gate,up,down}/{a [L, I, r], b [L, r, O]}    Hu et al. 2021
  adapters/{attn|mlp}/{down {kernel [L, D, r], bias [L, r]}, up {kernel [L, r, D], bias [L, D]}}
                                                                       Houlsby et al. 2019
  prefix/{k, v} [L, P, K, C]                                           Li and Liang 2021

LoRA adds (x a) b to a product and never forms a b. An adapter adds its bottleneck to what attention
or the MLP gives. The keys and values of a prefix stand before those of the text, whose positions
count from P on; its keys are trained as they are compared, behind the rotation.
"""

from typing import Any

import jax
import jax.numpy as jnp

Parts = dict[str, Any]  # of one layer; in `inner`, stacked over the layers


def added(given: jax.Array, x: jax.Array, parts: Parts, block: str, name: str) -> jax.Array:
  """A product's result [..., O], with what LoRA adds to it for x [..., I]."""
  part = parts.get("lora", {}).get(block, {}).get(name)
  if part is None:
    return given
  return given + (x.astype(jnp.float32) @ part["a"]) @ part["b"]


def adapted(given: jax.Array, parts: Parts, block: str) -> jax.Array:
  """What attention or the MLP gives [B, T, D], through the adapter behind it."""
  part = parts.get("adapters", {}).get(block)
  if part is None:
    return given
  inner = jax.nn.gelu(given @ part["down"]["kernel"] + part["down"]["bias"])
  return given + inner @ part["up"]["kernel"] + part["up"]["bias"]


def behind_prefix(k: jax.Array, v: jax.Array, parts: Parts) -> tuple[jax.Array, jax.Array]:
  """Keys and values [B, T, K, C] of a layer behind those of its prefix: [B, P + T, K, C]."""
  if "prefix" not in parts:
    return k, v

  def joined(name: str, own: jax.Array) -> jax.Array:
    prefix = parts["prefix"][name].astype(own.dtype)
    return jnp.concatenate([jnp.broadcast_to(prefix, (len(own), *prefix.shape)), own], axis=1)

  return joined("k", k), joined("v", v)


def prefix_length(inner: Parts | None) -> int:
  """P, 0 without a prefix."""
  return inner["prefix"]["k"].shape[1] if inner and "prefix" in inner else 0


def lengthened(mask: jax.Array, inner: Parts | None) -> jax.Array:
  """The mask [B, T] with the prefix in front, which is always real: [B, P + T]."""
  return jnp.pad(mask, ((0, 0), (prefix_length(inner), 0)), constant_values=1)


def within_layers(inner: Parts | None) -> Parts:
  """What a further token still needs: the prefix is in the cache by then."""
  return {name: part for name, part in (inner or {}).items() if name != "prefix"}
