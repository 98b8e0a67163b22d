"""A soft prompt in the format of PEFT, so that `peft.PeftModel.from_pretrained` loads it.

The format (PEFT, prompt tuning): `adapter_config.json` and `adapter_model.safetensors`, the latter
with one tensor `prompt_embeddings` [P, D]. PEFT prepends these vectors to the embedded text.
Neither torch nor peft is needed to write it.
"""

import json
import pathlib
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Float

from frozen_jax.core import files


def write_peft_prompt(
  folder: str | pathlib.Path,
  prompt: Float[Any, "P D"],
  base_model_name: str,
  token_dim: int,
  num_layers: int,
  num_attention_heads: int,
) -> pathlib.Path:
  """Writes a soft prompt for a causal LM as a PEFT adapter, in float32; returns the folder.

  Args:
    folder: created if necessary; an adapter of PEFT in it is replaced.
    prompt: the trained vectors, in the scale of the LM's input embeddings.
    base_model_name: the model's name or folder for transformers, which PEFT records.
    token_dim, num_layers, num_attention_heads: of the frozen LM.

  Raises:
    ValueError: `prompt` is not [P, token_dim].
    UserError: the folder cannot be written.
  """
  vectors = np.ascontiguousarray(prompt, dtype=np.float32)
  if vectors.ndim != 2 or vectors.shape[1] != token_dim:
    raise ValueError(f"a prompt must be [P, {token_dim}], this one is {list(vectors.shape)}")
  config = {
    "base_model_name_or_path": base_model_name,
    "inference_mode": True,
    "num_attention_heads": num_attention_heads,
    "num_layers": num_layers,
    "num_transformer_submodules": 1,
    "num_virtual_tokens": vectors.shape[0],
    "peft_type": "PROMPT_TUNING",
    "prompt_tuning_init": "RANDOM",
    "task_type": "CAUSAL_LM",
    "token_dim": token_dim,
  }
  folder = pathlib.Path(folder)
  data = safetensors.numpy.save({"prompt_embeddings": vectors}, metadata={"format": "pt"})
  files.write_bytes(folder / "adapter_model.safetensors", data)
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  files.write_bytes(folder / "adapter_config.json", text.encode())
  return folder
