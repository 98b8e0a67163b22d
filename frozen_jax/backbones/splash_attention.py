"""Causal attention on TPUs by JAX's splash attention: no array holds the scores of a text.

The kernel works on whole heads and rows, so each device runs it on its own (`jax.shard_map`). It
needs no mask [B, T, T]: it knows the causal one, and padding is told apart by segment ids.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core.types import HostOrDevice
from frozen_jax.sharding.activations import mesh_of
from frozen_jax.sharding.rules import spec_of

_LANES = 128  # a text's length is padded to a multiple of it
_MAX_PADDING = 1.1  # of the length: a smaller block is used where a larger one pads by more


def can_attend(config: DecoderConfig) -> bool:
  """Whether the kernel computes this model's attention: one kind of layer, and no ALiBi."""
  kinds = set(config.layer_kinds)
  return config.positions != "alibi" and len(kinds) == 1 and kinds <= {"full", "sliding"}


def attend(
  q: Float[Array, "B T H C"],
  k: Float[Array, "B T K C"],
  v: Float[Array, "B T K C"],
  mask: Int[HostOrDevice, "B T"],
  config: DecoderConfig,
  *,
  interpret: bool = False,
) -> Float[Array, "B T H C"]:
  """`attention.attend` with the causal mask, for texts whose real tokens have mask 1.

  Where `mask` is 0 the results have no meaning. interpret: runs the kernel on any platform, slowly.
  """
  length = q.shape[1]
  block, padded = _block_and_length(length)
  window = config.window if config.layer_kinds[0] == "sliding" else None
  pad = lambda a: jnp.pad(a, ((0, 0), (0, padded - length), *((0, 0),) * (a.ndim - 2)))
  run = functools.partial(
    _attend_rows, window=window, soft_cap=config.score_cap, block=block, interpret=interpret
  )
  mesh = mesh_of(q)
  if mesh is not None:
    heads = spec_of(k.shape, ("batch", None, "kv", None), mesh)
    rows = PartitionSpec(*heads[:1])
    run = jax.shard_map(
      run, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
  # Scores are q·k; the kernel scales nothing.
  q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  return run(*map(pad, (q, k, v, jnp.asarray(mask, jnp.int32))))[:, :length]


def _attend_rows(q, k, v, mask, *, window, soft_cap, block, interpret):
  """The kernel on the rows and heads of one device; see `attend`."""
  _, length, heads, _ = q.shape
  shape = (length, length)
  one = masks.CausalMask(shape)
  if window is not None:
    one = masks.LocalMask(shape, (window - 1, 0), 0)
  sizes = dict.fromkeys(
    ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), block
  )
  kernel = splash.make_splash_mha_single_device(
    mask=masks.MultiHeadMask([one] * heads),
    block_sizes=splash.BlockSizes(
      **sizes, block_kv_compute=min(block, 512), block_kv_dkv_compute=min(block, 512)
    ),
    attn_logits_soft_cap=soft_cap,
    residual_checkpoint_name="attention",
    interpret=interpret,
  )
  by_head = lambda a: a.swapaxes(1, 2)
  segments = splash.SegmentIds(mask, mask)
  return by_head(jax.vmap(kernel)(by_head(q), by_head(k), by_head(v), segments))


def _block_and_length(length: int) -> tuple[int, int]:
  """The size of a block, and the length to which a text is padded: a multiple of it."""
  least = -(-length // _LANES) * _LANES
  blocks = [block for block in (1024, 512, 384, 256) if block <= max(least, _LANES)]
  for block in blocks:
    padded = -(-length // block) * block
    if padded <= _MAX_PADDING * least:
      return block, padded
  return _LANES, least
