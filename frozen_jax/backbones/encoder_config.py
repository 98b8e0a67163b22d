"""The config of a frozen encoder: the sizes and constants in which one differs from another."""

import dataclasses

from frozen_jax.backbones.config import Rope

POOLINGS = ("", "mean", "cls", "max")
POOLINGS += ("mean_sqrt_len_tokens", "weightedmean", "lasttoken")  # of sentence-transformers


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """Sizes and constants of an encoder (hashable: a static argument of `jax.jit`).

  The defaults are those of BERT. Raises ValueError if the sizes contradict each other.
  """

  # Sizes: V, De, L, H, C (H * C need not equal D), F; `context`: the number of positions of
  # pretraining, which is a hard limit if positions are learned.
  vocab_size: int
  width: int
  layers: int
  heads: int
  head_dim: int
  mlp_width: int
  context: int = 512

  # Embeddings: of width `embed_width` Ee (0: De; if they differ, a projection follows); `types`:
  # the number of token types (0: no such embedding); the sum is normed if `embed_norm`.
  embed_width: int = 0
  types: int = 2
  embed_norm: bool = True

  # Norms: "layer" or "rms" (without a bias). norm_first: before attention and MLP (pre-norm, with a
  # final norm after the last layer) instead of after the sum (post-norm). skip_first_norm: the
  # first layer has no norm before its attention, as the norm of the embeddings comes right before.
  norm: str = "layer"
  norm_eps: float = 1e-12
  norm_bias: bool = True
  norm_first: bool = False
  skip_first_norm: bool = False

  # Positions: "learned" (a table, of which row `position_offset` is the first in use), "rotary" or
  # "buckets" (T5's relative positions: a bias to the scores for each of `buckets` classes of
  # distance, the last of which has all distances from `bucket_distance` on). local: for each layer,
  # whether it attends only to positions at most `window` away and rotates by `local_rope`; () is
  # False for all.
  positions: str = "learned"
  position_offset: int = 0
  rope: Rope = Rope()
  local_rope: Rope = Rope()
  local: tuple[bool, ...] = ()
  window: int = 0
  buckets: int = 32
  bucket_distance: int = 128

  # Attention: scores are q·k * C ** -0.5, or q·k where not `scaled`. The MLP: gated or plain.
  scaled: bool = True
  attn_bias: bool = True
  activation: str = "gelu"
  gated: bool = False
  mlp_bias: bool = True

  # Pooling of the states to one vector a text: "mean", "cls" (the first token), "lasttoken", "max",
  # "mean_sqrt_len_tokens" (the sum over the root of the number of tokens), "weightedmean" (the n-th
  # token counts n times), or "" where only the states are of use; normalise: the vector to length
  # 1. vector_width: how many of its numbers are kept after that (0: all).
  pooling: str = ""
  normalise: bool = False
  vector_width: int = 0

  def __post_init__(self):
    for name in ("vocab_size", "width", "layers", "heads", "head_dim", "mlp_width", "context"):
      if getattr(self, name) < 1:
        raise ValueError(f"EncoderConfig.{name} is {getattr(self, name)}; it must be positive")
    if self.head_dim % 2:
      raise ValueError(f"head_dim is {self.head_dim}; an even number is needed")
    if self.local and len(self.local) != self.layers:
      raise ValueError(f"{len(self.local)} kinds of attention are given for {self.layers} layers")
    if self.window < 0 or (any(self.local) and not self.window):
      raise ValueError(f"local attention cannot have a window of {self.window}")
    if self.positions not in ("learned", "rotary", "buckets"):
      raise ValueError(f"positions are {self.positions!r}; they are learned, rotary or buckets")
    if self.positions == "buckets" and (
      self.buckets < 4 or self.buckets % 2 or self.bucket_distance <= self.buckets // 4
    ):
      raise ValueError(f"{self.buckets} buckets cannot divide distances to {self.bucket_distance}")
    if self.skip_first_norm and not self.norm_first:
      raise ValueError("skip_first_norm needs norm_first")
    if self.pooling not in POOLINGS:
      raise ValueError(f"pooling is {self.pooling!r}; it is one of {POOLINGS}")

  @property
  def max_tokens(self) -> int:
    """How many positions a text can have; without a table of positions there is no limit."""
    return self.context if self.positions == "learned" else 2**31 - 1

  @property
  def embedding_width(self) -> int:
    """The width of the word embeddings, Ee."""
    return self.embed_width or self.width

  @property
  def has_projection(self) -> bool:
    """Whether there is a projection from the embeddings to the width of the layers."""
    return self.embedding_width != self.width
