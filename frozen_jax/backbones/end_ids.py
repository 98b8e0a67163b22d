"""The tokens that end a generated text, by a model's own files.

A folder: `eos_token_id` (a number or a list) of generation_config.json, or where there is no such
file of config.json, as `generate` of transformers takes them. A GGUF file: what llama.cpp takes for
end-of-generation tokens (src/llama-vocab.cpp, special_eog_ids): the stated ids of eos, eot, eom and
of three separators of code, and, since most files name one id, tokens by their text, of any type.
"""

import pathlib
from typing import Any

from frozen_jax.backbones.gguf_file import GGUFFile
from frozen_jax.backbones.hf_folder import read_json
from frozen_jax.core.errors import UserError

_GGUF_KEY = "tokenizer.ggml.{}_token_id"
_EOS_WHERE_UNSTATED = {"llama": (2,), "gpt2": (11,)}  # by `tokenizer.ggml.model`
_GGUF_TEXTS = (
  *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
  *("<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
  *("<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>"),
  *("<｜end▁of▁sentence｜>", "[e~["),
)
# Between files and repositories in models of code: one id each, by its text where none is stated.
_SEPARATORS = {
  "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
  "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
  "fim_sep": ("<|file_sep|>",),
}
# A text that does not end a turn in a vocabulary that has all of the others.
_NO_END = (
  ("<|end|>", ("<|return|>", "<|call|>")),  # gpt-oss: the end of a message
  ("<|end|>", ("<|return|>", "<|calls|>")),
  ("<|end|>", ("<|flush|>", "<|call|>")),
  ("<|end|>", ("<|flush|>", "<|calls|>")),  # Solar
  ("</s>", ("<|tool_response>",)),  # Gemma 4: text
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
  ids_of: dict[str, int] = {}
  for index, text in enumerate(file.value("tokenizer.ggml.tokens") or []):
    ids_of.setdefault(text, index)

  def stated(name: str) -> list[int]:
    key = _GGUF_KEY.format(name)
    value = file.value(key)
    return [] if value is None else _ids(value, f"{file.location}: {key}")

  ids = {*stated("eot"), *stated("eom")}
  ids.update(stated("eos") or _EOS_WHERE_UNSTATED.get(file.value("tokenizer.ggml.model"), ()))
  for name, texts in _SEPARATORS.items():
    ids.update(stated(name) or sorted(ids_of[text] for text in texts if text in ids_of)[:1])
  ids.update(ids_of[text] for text in _GGUF_TEXTS if text in ids_of)
  for text, others in _NO_END:
    if all(one in ids_of for one in (text, *others)):
      ids.discard(ids_of[text])
  return sorted(ids)


def _ids(value: Any, what: str) -> list[int]:
  ids = value if isinstance(value, list) else [value]
  if any(isinstance(index, bool) or not isinstance(index, int) for index in ids):
    raise UserError(f"{what} is {value!r}, where a token id or a list of them is needed; fix it")
  return ids
