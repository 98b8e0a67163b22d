"""LoRA as the adapter file of llama.cpp, which its programs take by `--lora`.

The file names the architecture and alpha, and holds A [R, in] and B [out, R] of each updated
matrix, float32, under the names and with the outputs in the order that llama.cpp's converters give
that matrix (convert_lora_to_gguf.py): for the Llama family the rows of B for queries and keys have
the two rotary halves of each head interleaved. llama.cpp applies B A times alpha / R. Written by
the `gguf` package.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import gguf

from frozen_jax.backbones.families import family_of
from frozen_jax.core import files
from frozen_jax.core.errors import UserError
from frozen_jax.export import peft_layout
from frozen_jax.export.peft import base_model
from frozen_jax.models.tuned_model import TunedModel

FILE = "adapter.gguf"
# Of transformers' model types that llama.cpp has under the name of another.
_SAME_NETWORK = {"mistral": "llama", "mixtral": "llama"}


def check_gguf_lora(info: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
  """UserError for an adapter that is no LoRA; info, parts: as of `peft.check_peft`."""
  if info["method"] != "lora":
    instead = "--config.export.format=adapter writes it, for frozen_jax.load_adapter"
    raise UserError(
      f"llama.cpp's adapter files hold low-rank updates (method lora), not what {info['method']}"
      f" trains ({', '.join(parts)}); {instead}"
    )


def write_gguf_lora(folder: pathlib.Path, model: TunedModel) -> None:
  """Writes the file of a LoRA to a folder.

  Raises UserError for a family that llama.cpp does not have, and where writing failed.
  """
  lm = model.lm
  name = family_of(lm.family, "hf", lm.name).gguf_name
  architecture = name or _SAME_NETWORK.get(lm.family)
  if not architecture:
    raise UserError(
      f"llama.cpp has no models of the type {lm.family!r}, and so no adapters for them;"
      " --config.export.format=peft writes it for PEFT"
    )
  modules = peft_layout.modules_of(lm.config, lm.family, "gguf")
  matrices, growth = peft_layout.lora_matrices(model.trained["lora"], modules)
  writer = gguf.GGUFWriter(folder / FILE, architecture)
  writer.add_type(gguf.GGUFType.ADAPTER)
  writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
  writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, model.sections["lora"].alpha * growth)
  writer.add_file_type(gguf.LlamaFileType.ALL_F32)
  writer.add_base_model_count(1)
  writer.add_base_model_name(0, base_model(lm.name).name)
  for module, both in matrices.items():
    for kind, matrix in zip("ab", both, strict=True):
      writer.add_tensor(f"{module}.weight.lora_{kind}", matrix)
  with files.user_write_errors(folder):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    try:
      gguf.GGUFReader(folder / FILE)
    except ValueError as error:  # numpy's `tofile` passes over what a full disk does not take
      raise OSError("it was not written whole") from error
