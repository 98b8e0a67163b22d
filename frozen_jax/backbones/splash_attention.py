"""Attention on TPUs by JAX's splash attention: no array holds the scores of a text.

The kernel needs no mask [B, T, T]: it knows the causal one and windows, and padding and texts that
share a row are told apart by segment ids.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

_LANES = 128  # a text's length is padded to a multiple of it
_MAX_PADDING = 1.1  # of the length: a smaller block is used where a larger one pads by more


def attend(
  q: Float[Array, "B T H C"],
  k: Float[Array, "B T K C"],
  v: Float[Array, "B T K C"],
  segments: Int[Array, "B T"],
  window: int | None = None,
  is_causal: bool = True,
  soft_cap: float | None = None,
  *,
  interpret: bool = False,
) -> Float[Array, "B T H C"]:
  """`attention.attend` of tokens with equal segments, on one device.

  Segment 0 is padding, whose results have no meaning. window: how many tokens a query attends to,
  its own included; on either side, and its own besides, if not `is_causal`. interpret: runs the
  kernel on any platform, slowly.
  """
  length, heads = q.shape[1:3]
  block, padded = _block_and_length(length)
  sizes = dict.fromkeys(
    ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), block
  )
  kernel = splash.make_splash_mha_single_device(
    mask=masks.MultiHeadMask([_mask(padded, window, is_causal)] * heads),
    block_sizes=splash.BlockSizes(
      **sizes, block_kv_compute=min(block, 512), block_kv_dkv_compute=min(block, 512)
    ),
    attn_logits_soft_cap=soft_cap,
    residual_checkpoint_name="attention",
    interpret=interpret,
  )
  pad = lambda a: jnp.pad(a, ((0, 0), (0, padded - length), *((0, 0),) * (a.ndim - 2)))
  by_head = lambda a: pad(a).swapaxes(1, 2)
  # Scores are q·k; the kernel scales nothing.
  q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  segments = pad(segments)
  run = jax.vmap(kernel)
  with jax.named_scope(f"{'causal' if is_causal else 'both_ways'}_{window or 'all'}"):  # for plans
    mixed = run(by_head(q), by_head(k), by_head(v), splash.SegmentIds(segments, segments))
  return mixed.swapaxes(1, 2)[:, :length]


def _mask(length: int, window: int | None, is_causal: bool) -> masks.Mask:
  """Which places a place attends to, as the kernel knows it; of the same segment, besides."""
  shape = (length, length)
  if window is None:
    return masks.CausalMask(shape) if is_causal else masks.FullMask(shape)
  return masks.LocalMask(shape, (window - 1, 0) if is_causal else (window, window), 0)


def _block_and_length(length: int) -> tuple[int, int]:
  """The size of a block, and the length to which a text is padded: a multiple of it."""
  least = -(-length // _LANES) * _LANES
  blocks = [block for block in (1024, 512, 384, 256) if block <= max(least, _LANES)]
  for block in blocks:
    padded = -(-length // block) * block
    if padded <= _MAX_PADDING * least:
      return block, padded
  return _LANES, least
