"""What distinguishes one frozen decoder from another: its sizes and constants, and nothing else."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and constants of a decoder of the Llama type (hashable: a static argument of `jax.jit`).

  vocab_size V, width D, layers L, heads H, kv_heads K (grouped queries when K < H), head_dim C
  (H * C need not equal D), mlp_width F, norm_eps (RMSNorm), rope_theta (base of the rotary
  wavelengths), context (positions the weights were trained for), tied (the vocabulary projection
  is the embedding table), activation (of the gated MLP, a key of `decoder.ACTIVATIONS`).

  Raises ValueError when the sizes do not fit together.
  """

  vocab_size: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_width: int
  norm_eps: float = 1e-5
  rope_theta: float = 10_000.0
  context: int = 2048
  tied: bool = False
  activation: str = "silu"

  def __post_init__(self):
    for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width"):
      if getattr(self, name) < 1:
        raise ValueError(f"DecoderConfig.{name} is {getattr(self, name)}; it must be positive")
    if self.heads % self.kv_heads:
      raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
    if self.head_dim % 2:
      raise ValueError(f"head_dim is {self.head_dim}; rotary positions need an even number")
