"""Sizes of large models, for plans and costs without their weights. Imports no jax.

Llama 3: its config.json. J1-Jumbo: Lieber et al. (2021), table 1.
"""

from ml_collections import ConfigDict

_LLAMA_3 = {
  "vocab_size": 128_256,
  "head_dim": 128,
  "kv_heads": 8,
  "context": 8192,
  "norm_eps": 1e-5,
  "tied": False,
}
_J1 = {
  "vocab_size": 256_000,
  "context": 2048,
  "norm": "layer",
  "positions": "learned",
  "gated": False,
  "activation": "gelu",
  "tied": True,
}
J1_LARGE = _J1 | {
  "width": 4096,
  "layers": 32,
  "heads": 32,
  "kv_heads": 32,
  "head_dim": 128,
  "mlp_width": 16_384,
}
LLAMA3_8B = _LLAMA_3 | {"width": 4096, "layers": 32, "heads": 32, "mlp_width": 14_336}
_MODELS = {
  "llama3_8b": ("hf:meta-llama/Meta-Llama-3-8B-Instruct", LLAMA3_8B),
  "llama3_70b": (
    "hf:meta-llama/Meta-Llama-3-70B-Instruct",
    _LLAMA_3 | {"width": 8192, "layers": 80, "heads": 64, "mlp_width": 28_672},
  ),
  "j1_jumbo": (
    "j1-jumbo",
    _J1
    | {
      "width": 13_824,
      "layers": 76,
      "heads": 96,
      "kv_heads": 96,
      "head_dim": 144,
      "mlp_width": 55_296,
    },
  ),
}
LARGE_MODELS = tuple(_MODELS)


def large_model(config: ConfigDict, name: str) -> None:
  """Sets a config on one of `LARGE_MODELS`, for a pod: all devices hold a part of the weights.

  Rows for 256 devices, prompts of 100 positions, the layers rematerialised.
  """
  model, sizes = _MODELS[name]
  config.model.update({"name": model, "dtype": "bfloat16", "remat": "full"})
  config.model.sizes = ConfigDict(sizes)
  config.prompt.length = 100
  config.data.lengths = (min(2048, sizes["context"] - 128),)
  config.mesh.update({"data": 1, "fsdp": 0})
  config.train.batch_size = 256


def t5_base(config: ConfigDict) -> None:
  """Gives a config the encoder of T5-base (Raffel et al. 2020) as its text encoder."""
  config.model.encoder = "hf:google-t5/t5-base"
  config.model.encoder_sizes = ConfigDict(
    {
      "vocab_size": 32_128,
      "width": 768,
      "layers": 12,
      "heads": 12,
      "head_dim": 64,
      "mlp_width": 3072,
      "context": 512,
      "types": 0,
      "embed_norm": False,
      "norm": "rms",
      "norm_bias": False,
      "norm_first": True,
      "positions": "buckets",
      "scaled": False,
      "attn_bias": False,
      "mlp_bias": False,
      "activation": "relu",
    }
  )
