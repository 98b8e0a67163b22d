"""The attention of whole texts by a kernel of the platform, chosen in this one place.

"splash" is JAX's for TPUs, "cudnn" that of NVIDIA's library for 16-bit floats. What neither can
compute is left to `attention.attend`, as is everything on CPUs. A kernel makes no array of the
scores of a text and needs no mask [B, T, T]. It works on whole heads and rows, so each device runs
it on its own (`jax.shard_map`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from frozen_jax.backbones import attention_inputs, splash_attention
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.core.device import has_cudnn_attention
from frozen_jax.core.types import HostOrDevice, Size
from frozen_jax.sharding.activations import mesh_of, platform_of
from frozen_jax.sharding.rules import spec_of

_CUDNN_HEAD = 128  # numbers of a head; a multiple of 8
# Of an encoder's texts; a plan of BERT-base on a v5e: XLA's attention moves as much memory as the
# products take time at 350 tokens, and needs less of it than the kernel at 128.
_SHORTEST = 256


@dataclasses.dataclass(frozen=True)
class Kernel:
  """How a kernel computes the attention of a model.

  windows: of each kind of layer, how far a query attends, None: to all. Causal ones count the
  query's own position, the others are for either side. interpret: runs on any platform, slowly;
  cuDNN is replaced by XLA in the same function of JAX.
  """

  name: Literal["splash", "cudnn"]
  windows: tuple[int | None, ...] = (None,)
  is_causal: bool = True
  soft_cap: float | None = None
  interpret: bool = False

  @property
  def needs_order(self) -> bool:
    """Whether the padding of a row must come last (`padding_last`).

    Windows are counted in places, and padding may stand between a prompt and its text. cuDNN is
    told of no padding: no real token sees what comes after it.
    """
    return self.is_causal and (self.name == "cudnn" or any(self.windows))

  def attend(
    self,
    q: Float[Array, "B T H C"],
    k: Float[Array, "B S K C"],
    v: Float[Array, "B S K C"],
    segments: Int[HostOrDevice, "B S"],
    kind_id: Int[Array, ""] | int = 0,
  ) -> Float[Array, "B T H C"]:
    """`attention.attend` for texts whose tokens have equal `segments`, 0 being padding.

    The first S - T keys are of a prefix. kind_id: the layer's kind, which may be traced: each
    window has a branch of its own. Padding gets numbers without meaning.
    """
    prefix = k.shape[1] - q.shape[1]
    q, k, v = (checkpoint_name(a, "qkv") for a in (q, k, v))
    if prefix:  # queries before those of the text make it a longer text
      q = jnp.pad(q, ((0, 0), (prefix, 0), (0, 0), (0, 0)))
    windows = tuple(dict.fromkeys(self.windows))
    branch = jnp.asarray([windows.index(window) for window in self.windows], jnp.int32)[kind_id]
    run = self._of_windows(windows)
    mesh = mesh_of(q)
    if mesh is not None:
      heads = spec_of(k.shape, ("batch", None, "kv", None), mesh)
      specs = (heads, heads, heads, PartitionSpec(*heads[:1]), PartitionSpec())
      run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)
    return run(q, k, v, jnp.asarray(segments, jnp.int32), branch)[:, prefix:]

  def _of_windows(self, windows: tuple[int | None, ...]) -> Callable[..., Array]:
    """The kernel of one device, of (q, k, v, segments, branch).

    Of a scan over layers of several kinds only this is compiled once for each kind: spans of layers
    as scans of their own would have the whole layer again in each.
    """
    branches = [functools.partial(self._of_window, window) for window in windows]
    if len(branches) == 1:
      return lambda q, k, v, segments, branch: branches[0](q, k, v, segments)
    return lambda q, k, v, segments, branch: jax.lax.switch(branch, branches, q, k, v, segments)

  def _of_window(self, window, q, k, v, segments):
    if self.name == "splash":
      return splash_attention.attend(
        q, k, v, segments, window, self.is_causal, self.soft_cap, interpret=self.interpret
      )
    attend = functools.partial(
      jax.nn.dot_product_attention,
      is_causal=True,
      local_window_size=None if window is None else (window - 1, 0),
      implementation="xla" if self.interpret else "cudnn",
    )
    length = q.shape[1]  # JAX refuses the derivative of odd ones; no token sees what comes after it
    q, k, v = (jnp.pad(a, ((0, 0), (0, length % 2), (0, 0), (0, 0))) for a in (q, k, v))
    return _saving(attend)(q, k, v)[:, :length]


def of_decoder(config: DecoderConfig, like: Array, length: Size) -> Kernel | None:
  """The kernel for texts of a length, any prefix included; None: `attention.attend`.

  like: a weight of the model, whose platform and dtype decide. ALiBi has none: its bias would be an
  array as large as the scores.
  """
  platform = platform_of(like)
  if platform not in ("gpu", "tpu") or config.positions == "alibi":
    return None
  windows = tuple(
    config.window if kind == "sliding" and config.window < length else None
    for kind in attention_inputs.kinds(config)
  )
  if platform == "tpu":
    return Kernel("splash", windows, soft_cap=config.score_cap)
  fits = config.head_dim % 8 == 0 and config.head_dim <= _CUDNN_HEAD and config.score_cap is None
  fits &= like.dtype in (jnp.bfloat16, jnp.float16)
  return Kernel("cudnn", windows) if platform == "gpu" and fits and has_cudnn_attention() else None


def of_encoder(config: EncoderConfig, like: Array, length: Size) -> Kernel | None:
  """As `of_decoder`, for a bidirectional encoder; the second kind of layer is local.

  T5's has none, for its bias, nor have GPUs: cuDNN takes neither several texts in a row nor padding
  on the left.
  """
  if platform_of(like) != "tpu" or config.positions == "buckets" or length < _SHORTEST:
    return None
  window = config.window if config.window < length - 1 else None
  windows = (None, window) if any(config.local) else (None,)
  return Kernel("splash", windows, is_causal=False)


def padding_last(mask: Int[HostOrDevice, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
  """The places of a row's real tokens and then of its padding, and the order that undoes it."""
  order = jnp.argsort(jnp.asarray(mask) == 0, axis=1, stable=True)
  return order, jnp.argsort(order, axis=1)


def reorder(x: Shaped[HostOrDevice, "B T *rest"], order: Int[Array, "B T"]) -> Shaped[Array, "..."]:
  """The places of each row in another order."""
  take = lambda row, places: row.at[places].get(unique_indices=True, mode="promise_in_bounds")
  return jax.vmap(take)(jnp.asarray(x), order)


def _saving(attend: Callable[..., Array]) -> Callable[..., Array]:
  """`attend`(q, k, v), whose result and what its derivative needs are saved as "attention".

  So are those of `attention.attend` and of splash attention (see `core.remat`).
  """
  save = lambda a: checkpoint_name(a, "attention")

  @jax.custom_vjp
  def saving(q, k, v):
    return attend(q, k, v)

  def forward(q, k, v):
    result, derivative = jax.vjp(attend, q, k, v)
    return save(result), jax.tree.map(save, derivative)

  saving.defvjp(forward, lambda derivative, cotangent: derivative(cotangent))
  return saving
