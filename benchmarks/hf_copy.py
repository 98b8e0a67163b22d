"""A copy of a frozen decoder as transformers reads it: `python -m benchmarks.hf_copy NAME FOLDER`.

The peer gets the same weights this way, in float32.
"""

import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import save_file

from frozen_jax.backbones.load import Decoder, load_decoder
from frozen_jax.core import paths

LAYER = {
  "attn_norm/scale": "input_layernorm.weight",
  "mlp_norm/scale": "post_attention_layernorm.weight",
  **{f"attn/{name}/kernel": f"self_attn.{name}_proj.weight" for name in "qkvo"},
  **{f"mlp/{name}/kernel": f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
}


def write(lm: Decoder, folder: pathlib.Path) -> None:
  """Writes config.json and model.safetensors for a `LlamaForCausalLM` with a tied head."""
  size = lm.config
  settings = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": size.vocab_size,
    "hidden_size": size.width,
    "intermediate_size": size.mlp_width,
    "num_hidden_layers": size.layers,
    "num_attention_heads": size.heads,
    "num_key_value_heads": size.kv_heads,
    "head_dim": size.head_dim,
    "rms_norm_eps": size.norm_eps,
    "rope_parameters": {"rope_type": "default", "rope_theta": size.rope.theta},
    "max_position_embeddings": size.context,
    "tie_word_embeddings": size.tied,
  }
  leaves = {path: np.asarray(leaf) for path, leaf in paths.flatten(lm.params).items()}
  tensors = {
    "model.embed_tokens.weight": leaves["embed/tokens"],
    "model.norm.weight": leaves["final_norm/scale"],
  }
  for ours, theirs in LAYER.items():
    for layer, leaf in enumerate(leaves[f"layers/{ours}"]):
      tensors[f"model.layers.{layer}.{theirs}"] = np.ascontiguousarray(leaf.T)
  if not size.tied:
    tensors["lm_head.weight"] = np.ascontiguousarray(leaves["head/kernel"].T)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(settings))
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
  write(load_decoder(sys.argv[1], progress=False), pathlib.Path(sys.argv[2]))
