"""The config of a frozen decoder: the sizes and constants in which one differs from another."""

import dataclasses
from typing import Literal

Kind = Literal["full", "sliding", "unrotated"]


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary embedding: the base of the wavelengths, and how they are scaled for long texts.

  kind: "default", "linear", "dynamic", "llama3", "yarn" or "longrope" (see `rope`). factor: how
  many times longer than `original_context`, the context of pretraining, the text may be.
  low_freq_factor, high_freq_factor: of llama3. beta_slow, beta_fast: of YaRN; truncate: whether its
  bounds are rounded. short_factor, long_factor: longrope's divisors of the frequencies, one for
  each rotated pair of a head. attention_factor: cos and sin are multiplied by it.
  """

  theta: float = 10_000.0
  kind: str = "default"
  factor: float = 1.0
  original_context: int = 0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  beta_slow: float = 1.0
  beta_fast: float = 32.0
  truncate: bool = True
  short_factor: tuple[float, ...] = ()
  long_factor: tuple[float, ...] = ()
  attention_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and constants of a decoder (hashable: a static argument of `jax.jit`).

  The defaults are those of Llama. Raises ValueError if the sizes contradict each other.
  """

  # Sizes: V, D, L, H, K (grouped queries if K < H), C (H * C need not equal D), F; `context`: the
  # number of positions of pretraining.
  vocab_size: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_width: int
  context: int = 2048

  # The vocabulary: `tied`, the LM head is the embedding table; embeddings are multiplied by
  # `embed_scale`, then normed if `embed_norm`; logits are capped by cap * tanh(logits / cap).
  tied: bool = False
  embed_scale: float = 1.0
  embed_norm: bool = False
  head_bias: bool = False
  logit_cap: float | None = None

  # Norms: "rms" (scale + norm_offset) or "layer" (with a bias). norm_after: the outputs of
  # attention and MLP are normed, too. parallel: attention and MLP both get the layer's input;
  # shared_norm: through the same norm.
  norm: str = "rms"
  norm_eps: float = 1e-5
  norm_offset: float = 0.0
  norm_after: bool = False
  parallel: bool = False
  shared_norm: bool = False

  # Positions: "rotary", "learned" (a table, of which row `position_offset` is the first in use) or
  # "alibi". rotary_dim: how many of the C numbers of a head are rotated (0: all); `interleaved`: a
  # pair is two neighbours, else one number of each half. kinds: of attention, one for each layer
  # (() is "full" for all); "sliding" attends to the last `window` positions and rotates by
  # `local_rope` if there is one.
  positions: str = "rotary"
  position_offset: int = 0
  rope: Rope = Rope()
  local_rope: Rope | None = None
  rotary_dim: int = 0
  interleaved: bool = False
  window: int | None = None
  kinds: tuple[Kind, ...] = ()

  # Attention: scores are q·k * query_scale (None: C ** -0.5), capped in the same way as logits.
  qkv_bias: bool = False
  out_bias: bool = False
  qk_norm: bool = False
  query_scale: float | None = None
  score_cap: float | None = None

  # The MLP: gated or plain; experts E > 0: a router sends each token to `experts_per_token` of
  # them, whose weights are scaled to a sum of 1 if `renormalise`.
  activation: str = "silu"
  gated: bool = True
  mlp_bias: bool = False
  experts: int = 0
  experts_per_token: int = 0
  renormalise: bool = True

  # The key/value cache, a choice of the user, not of the model: "" is in the dtype of the weights,
  # or "int8" (`cache.CACHE_KINDS`).
  cache: str = ""

  def __post_init__(self):
    for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width"):
      if getattr(self, name) < 1:
        raise ValueError(f"DecoderConfig.{name} is {getattr(self, name)}; it must be positive")
    if self.heads % self.kv_heads:
      raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
    if self.head_dim % 2:
      raise ValueError(f"head_dim is {self.head_dim}; an even number is needed")
    if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
      raise ValueError(f"{self.rotary_dim} of {self.head_dim} numbers cannot be rotated in pairs")
    if self.kinds and len(self.kinds) != self.layers:
      raise ValueError(f"{len(self.kinds)} kinds of attention are given for {self.layers} layers")
    if "sliding" in self.kinds and not self.window:
      raise ValueError("layers of sliding attention need a window")
    chosen = self.experts_per_token
    if not 0 <= chosen <= self.experts or (self.experts > 0) != (chosen > 0):
      raise ValueError(f"{chosen} of {self.experts} experts cannot be chosen for a token")

  @property
  def layer_kinds(self) -> tuple[Kind, ...]:
    """The kind of attention of each layer, length L."""
    return self.kinds or ("full",) * self.layers

  @property
  def rotated(self) -> int:
    """How many numbers of a head are rotated."""
    return self.rotary_dim or self.head_dim
