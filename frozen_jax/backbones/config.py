"""What distinguishes one frozen decoder from another: its sizes and constants, and nothing else."""

import dataclasses
from typing import Literal

Kind = Literal["full", "sliding", "unrotated"]


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary positions: the base of the wavelengths, and how they are stretched for long texts.

  kind: "default", "linear", "dynamic", "llama3", "yarn" or "longrope" (see `rope`). factor: by how
  much the text may be longer than `original`, the positions of the first training. low, high:
  llama3's low_freq_factor and high_freq_factor. slow, fast: YaRN's beta_slow and beta_fast;
  truncate: whether its bounds are rounded. short, long: longrope's divisors of each wavelength, C/2
  each. magnitude: what cos and sin are multiplied by (1.0: nothing).
  """

  theta: float = 10_000.0
  kind: str = "default"
  factor: float = 1.0
  original: int = 0
  low: float = 1.0
  high: float = 4.0
  slow: float = 1.0
  fast: float = 32.0
  truncate: bool = True
  short: tuple[float, ...] = ()
  long: tuple[float, ...] = ()
  magnitude: float = 1.0


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and constants of a decoder (hashable: a static argument of `jax.jit`).

  The defaults are those of the Llama type. Raises ValueError when the sizes do not fit together.
  """

  # Sizes: V, D, L, H, K (grouped queries when K < H), C (H * C need not equal D), F; `context` is
  # the number of positions that the weights were trained for.
  vocab_size: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_width: int
  context: int = 2048

  # The vocabulary: `tied`, the projection is the embedding table; embeddings times `embed_scale`,
  # then normed where `embed_norm`; logits pass cap * tanh(logits / cap) where a cap is set.
  tied: bool = False
  embed_scale: float = 1.0
  embed_norm: bool = False
  head_bias: bool = False
  logit_cap: float | None = None

  # Norms: "rms" (scale + norm_offset) or "layer" (with a bias). after: norms on what attention and
  # MLP give, too. parallel: both read the layer's input; shared_norm: through the same norm.
  norm: str = "rms"
  norm_eps: float = 1e-5
  norm_offset: float = 0.0
  norm_after: bool = False
  parallel: bool = False
  shared_norm: bool = False

  # Positions: "rotary", "learned" (a table, read from row `position_offset` on) or "alibi".
  # rotary_dim: how many of the C numbers of a head are rotated; pairs are neighbours where
  # `interleaved`, else halves. Layers of the kind "sliding" see the last `window` positions and
  # rotate by `local_rope` where it is set; () is "full" everywhere.
  positions: str = "rotary"
  position_offset: int = 0
  rope: Rope = Rope()
  local_rope: Rope | None = None
  rotary_dim: int = 0
  interleaved: bool = False
  window: int | None = None
  kinds: tuple[Kind, ...] = ()

  # Attention: scores are q·k * query_scale (None: C ** -0.5), capped like the logits.
  qkv_bias: bool = False
  out_bias: bool = False
  qk_norm: bool = False
  query_scale: float | None = None
  score_cap: float | None = None

  # The MLP: gated or plain; experts E > 0: a router chooses `chosen` of them for each token, whose
  # weights are made to sum to 1 where `renormalise`.
  activation: str = "silu"
  gated: bool = True
  mlp_bias: bool = False
  experts: int = 0
  chosen: int = 0
  renormalise: bool = True

  # Decoding, which the loaded model does as asked for: keys and values are kept in the dtype of the
  # weights, or as "int8" (`cache.KINDS`).
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
    if not 0 <= self.chosen <= self.experts or (self.experts > 0) != (self.chosen > 0):
      raise ValueError(f"{self.chosen} of {self.experts} experts cannot be chosen for a token")

  @property
  def layer_kinds(self) -> tuple[Kind, ...]:
    """The kind of attention of each layer, length L."""
    return self.kinds or ("full",) * self.layers

  @property
  def rotated(self) -> int:
    """How many numbers of a head are rotated."""
    return self.rotary_dim or self.head_dim
