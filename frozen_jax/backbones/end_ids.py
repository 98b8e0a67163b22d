"""The tokens that end a generated text, by a model's own files.

A folder: `eos_token_id` (a number or a list) of generation_config.json, or where there is no such
file of config.json, as `generate` of transformers takes them. A GGUF file: its eos, eot and eom
ids, and the tokens that llama.cpp knows by their text (src/llama-vocab.cpp, special_eog_ids), since
most files name one id.
"""

import pathlib
from typing import Any

from frozen_jax.backbones.gguf_file import GGUFFile
from frozen_jax.backbones.hf_folder import read_json
from frozen_jax.core.errors import UserError
from frozen_jax.text.gguf_vocabulary import CONTROL

_GGUF_KEYS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
_GGUF_TEXTS = frozenset(
  ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>")
  + ("<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "<end_of_utterance>")
)


def read(model: GGUFFile | pathlib.Path, vocab_size: int, tokenizer: Any) -> tuple[int, ...]:
  """The end tokens of a model, in rising order; of its tokenizer where its files name none.

  model: a GGUF file, or the path of a folder. vocab_size: V; ids beyond it cannot come.

  Raises:
    UserError: an id is no whole number.
  """
  ids = _of_gguf(model) if isinstance(model, GGUFFile) else _of_folder(model)
  if not ids and tokenizer is not None and tokenizer.eos_token_id is not None:
    ids = [tokenizer.eos_token_id]
  return tuple(sorted({index for index in ids if 0 <= index < vocab_size}))


def _of_folder(folder: pathlib.Path) -> list[int]:
  file = folder / "generation_config.json"
  if not file.is_file():
    file = folder / "config.json"
  value = read_json(file).get("eos_token_id")
  return [] if value is None else _ids(value, f"{file}: eos_token_id")


def _of_gguf(file: GGUFFile) -> list[int]:
  tokens = file.value("tokenizer.ggml.tokens") or []
  types = file.value("tokenizer.ggml.token_type") or []
  stated = [(key, file.value(key)) for key in _GGUF_KEYS]
  ids = [i for key, v in stated if v is not None for i in _ids(v, f"{file.location}: {key}")]
  pairs = enumerate(zip(tokens, types, strict=False))
  return ids + [i for i, (text, kind) in pairs if kind == CONTROL and text in _GGUF_TEXTS]


def _ids(value: Any, what: str) -> list[int]:
  ids = value if isinstance(value, list) else [value]
  if any(isinstance(index, bool) or not isinstance(index, int) for index in ids):
    raise UserError(f"{what} is {value!r}, where a token id or a list of them is needed; mend it")
  return ids
