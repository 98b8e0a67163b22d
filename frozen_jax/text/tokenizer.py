"""Tokenizers of frozen models: from a GGUF file's metadata, or from a model folder.

Both end as transformers' `PreTrainedTokenizerFast`, without torch: that class stands on the
`tokenizers` package alone, whereas `AutoTokenizer`, given a GGUF file, imports torch wherever torch
is installed (transformers 5.23).
"""

import pathlib
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from frozen_jax.core.errors import UserError
from frozen_jax.text import gguf_vocabulary
from frozen_jax.text.gguf_vocabulary import Metadata

# What llama.cpp takes for granted where a file is silent, by the kind of tokenizer.
_SILENT = {
  "gpt2": {},
  "llama": {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0},
}

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def from_gguf(value: Metadata, vocab_size: int, where: str) -> PreTrainedTokenizerFast | None:
  """The tokenizer in a GGUF file's metadata; None where the file has none.

  `value(key, default)` gives a metadata value, `vocab_size` is V of the model.

  Raises:
    UserError: it is of a kind that is not supported, or its vocabulary is not the model's.
  """
  kind = value("tokenizer.ggml.model")
  if kind is None or kind == "no_vocab":
    return None
  pre = value("tokenizer.ggml.pre", "default")
  if kind not in _SILENT or (kind == "gpt2" and pre not in gguf_vocabulary.PRE_TOKENIZERS):
    raise UserError(
      f"{where} has a tokenizer of the kind {kind!r} ({pre!r}); supported are 'llama', and 'gpt2' "
      f"with {', '.join(gguf_vocabulary.PRE_TOKENIZERS)}: load the model from a folder with "
      "tokenizer.json instead"
    )
  tokens = value("tokenizer.ggml.tokens", [])
  if len(tokens) != vocab_size:
    raise UserError(
      f"the tokenizer in {where} has {len(tokens)} tokens and the model {vocab_size}: it is the "
      "tokenizer of another model; get the file again"
    )
  silent = _SILENT[kind]
  named = {
    name: _token(value, tokens, f"tokenizer.ggml.{key}", silent.get(key), where)
    for name, key in (
      ("bos_token", "bos_token_id"),
      ("eos_token", "eos_token_id"),
      ("unk_token", "unknown_token_id"),
      ("pad_token", "padding_token_id"),
    )
  }
  if kind == "llama":
    inner, bos = gguf_vocabulary.sentencepiece(value, tokens, where), True
  else:
    inner = gguf_vocabulary.byte_level(value, tokens, where)
    bos = gguf_vocabulary.PRE_TOKENIZERS[pre].bos
  first: list[Any] = [named["bos_token"]] if value("tokenizer.ggml.add_bos_token", bos) else []
  last: list[Any] = [named["eos_token"]] if value("tokenizer.ggml.add_eos_token", False) else []
  if None in first + last:
    raise UserError(f"{where} wants a bos or eos token at every text and names none; get it again")
  if first or last:
    inner.post_processor = _framed(inner, first, last)
  wrapped = PreTrainedTokenizerFast(
    tokenizer_object=inner,
    clean_up_tokenization_spaces=False,
    **{name: token for name, token in named.items() if token is not None},
  )
  wrapped.chat_template = value("tokenizer.chat_template")
  return _finished(wrapped)


def from_folder(folder: pathlib.Path, vocab_size: int) -> PreTrainedTokenizerFast | None:
  """The tokenizer in a model folder; None where the folder has no tokenizer files.

  Raises:
    UserError: its files cannot be read, or its vocabulary is not the model's.
  """
  if not any((folder / name).is_file() for name in _FILES):
    return None
  try:
    if (folder / "tokenizer.json").is_file():
      wrapped = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    else:  # older files, which transformers knows how to convert
      from transformers import AutoTokenizer

      wrapped = AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
      )
  except Exception as error:  # the packages raise bare Exceptions on a damaged tokenizer.json
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise UserError(
      f"cannot read the tokenizer in {folder} ({reason}); get its files again"
    ) from None
  check_vocabulary(wrapped, vocab_size, str(folder))
  return _finished(wrapped)


def check_vocabulary(tokenizer: Any, vocab_size: int, where: str) -> None:
  """Tables are often padded beyond the tokenizer, by little; never are they shorter.

  Raises:
    UserError: the tokenizer cannot be the one of a model with this many tokens.
  """
  highest = max(tokenizer.get_vocab().values(), default=-1) + 1
  spare = max(256, vocab_size // 10)
  if not vocab_size - spare <= highest <= vocab_size:
    raise UserError(
      f"the tokenizer in {where} has {highest} tokens and the model {vocab_size}: it is the "
      "tokenizer of another model; put the right tokenizer files there, or none"
    )


def _framed(tokenizer: Tokenizer, before: list[str], after: list[str]) -> Any:
  """The post-processor that puts tokens before and after each text."""
  own = {token: tokenizer.token_to_id(token) for token in (*before, *after)}
  single = [*before, "$A", *after]
  pair = [*single, *(f"{part}:1" for part in (*before, "$B", *after))]
  return processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(own.items()))


def _token(
  value: Metadata, tokens: list[str], key: str, silent: int | None, where: str
) -> str | None:
  index = value(key, silent)
  if index is None:
    return None
  if not 0 <= index < len(tokens):
    raise UserError(f"{where}: {key} is {index}, which is no token of its {len(tokens)}")
  return tokens[index]


def _finished(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
  """Padding needs some id, though the mask alone says what counts: the end token's, by custom."""
  if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
    tokenizer.pad_token = tokenizer.eos_token
  return tokenizer
