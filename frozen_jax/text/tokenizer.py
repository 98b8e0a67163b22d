"""Tokenizers of frozen models: from a GGUF file's metadata, or from a model folder.

A folder's is what `AutoTokenizer` of transformers makes of its files: tokenizer_config.json counts
beside tokenizer.json. A GGUF file's becomes a `PreTrainedTokenizerFast`, which needs only the
`tokenizers` package; `AutoTokenizer`, given a GGUF file, imports torch if it is installed
(transformers 5.23).
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from frozen_jax.core.errors import UserError
from frozen_jax.text import gguf_vocabulary
from frozen_jax.text.gguf_vocabulary import Metadata

# The defaults of llama.cpp for ids that a file does not set, by the kind of tokenizer.
_DEFAULT_IDS = {
  "gpt2": {},
  "llama": {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0},
}

_TOKENIZER_FILES = (
  *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"),
  *("sentencepiece.bpe.model", "tekken.json"),
)


def from_gguf(value: Metadata, vocab_size: int, where: str) -> PreTrainedTokenizerFast | None:
  """The tokenizer in a GGUF file's metadata; None where the file has none.

  `value(key, default)` returns a metadata value, `vocab_size` is V of the model.

  Raises:
    UserError: its kind is not supported, or its vocabulary is not the model's.
  """
  kind = value("tokenizer.ggml.model")
  if kind is None or kind == "no_vocab":
    return None
  pre = value("tokenizer.ggml.pre", "default")
  if kind not in _DEFAULT_IDS or (kind == "gpt2" and pre not in gguf_vocabulary.PRE_TOKENIZERS):
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
  defaults = _DEFAULT_IDS[kind]
  special_tokens = {
    name: _token(value, tokens, f"tokenizer.ggml.{key}", defaults.get(key), where)
    for name, key in (
      ("bos_token", "bos_token_id"),
      ("eos_token", "eos_token_id"),
      ("unk_token", "unknown_token_id"),
      ("pad_token", "padding_token_id"),
    )
  }
  if kind == "llama":
    backend, add_bos = gguf_vocabulary.sentencepiece(value, tokens, where), True
  else:
    backend = gguf_vocabulary.byte_level(value, tokens, where)
    add_bos = gguf_vocabulary.PRE_TOKENIZERS[pre].add_bos
  add_bos = value("tokenizer.ggml.add_bos_token", add_bos)
  add_eos = value("tokenizer.ggml.add_eos_token", False)
  first: list[Any] = [special_tokens["bos_token"]] if add_bos else []
  last: list[Any] = [special_tokens["eos_token"]] if add_eos else []
  if None in first + last:
    raise UserError(f"{where} wants a bos or eos token at every text and names none; get it again")
  if first or last:
    backend.post_processor = _post_processor(backend, first, last)
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend,
    clean_up_tokenization_spaces=False,
    **{name: token for name, token in special_tokens.items() if token is not None},
  )
  tokenizer.chat_template = value("tokenizer.chat_template")
  return _with_pad_token(tokenizer)


def from_folder(folder: pathlib.Path, vocab_size: int) -> Any | None:
  """The tokenizer in a model folder; None where the folder has no files of one.

  A class that needs no file of a vocabulary, such as ByT5's, is found by its name in
  tokenizer_config.json or config.json.

  Where it has tokens beyond the model's embeddings, texts that contain one are refused.

  Raises:
    UserError: its files cannot be read, or its vocabulary is not the model's.
  """
  has_files = any((folder / name).is_file() for name in _TOKENIZER_FILES)
  if not has_files and not _names_class(folder):
    return None
  try:
    tokenizer = _read_folder(folder)
  except Exception as error:  # the packages raise bare Exceptions on a damaged tokenizer.json
    if not has_files:
      return None
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise UserError(
      f"cannot read the tokenizer in {folder} ({reason}); get its files again"
    ) from None
  if not has_files and tokenizer.vocab_files_names:  # one whose files are missing, so empty
    return None
  check_vocabulary(tokenizer, vocab_size, str(folder))
  beyond = [token for token, index in tokenizer.get_vocab().items() if index >= vocab_size]
  return _with_pad_token(refusing(tokenizer, vocab_size) if beyond else tokenizer)


def _names_class(folder: pathlib.Path) -> bool:
  """Whether a file of the folder names the class of its tokenizer."""
  for name in ("tokenizer_config.json", "config.json"):
    with contextlib.suppress(OSError, ValueError):
      values = json.loads((folder / name).read_text(encoding="utf-8"))
      if isinstance(values, dict) and values.get("tokenizer_class"):
        return True
  return False


def _read_folder(folder: pathlib.Path) -> Any:
  """What AutoTokenizer gives; without the model's own code, for which it would ask."""
  from transformers import AutoTokenizer

  try:
    return AutoTokenizer.from_pretrained(
      str(folder), local_files_only=True, trust_remote_code=False
    )
  except ValueError as error:
    if "trust_remote_code" in str(error) and (folder / "tokenizer.json").is_file():
      return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    raise


def refusing(tokenizer: Any, vocab_size: int) -> Any:
  """The tokenizer, which now raises UserError for a text with a token that has no embedding."""
  kind = type(tokenizer)

  def check(ids: Any) -> None:
    for index in _flat(ids):
      if index >= vocab_size:
        token = tokenizer.convert_ids_to_tokens(index)
        raise UserError(
          f"a text holds the token {token!r}, whose id {index} is beyond the {vocab_size}"
          " embeddings of the model; leave it out of the text"
        )

  class Refusing(kind):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
      encoded = super().__call__(*args, **kwargs)
      check(encoded["input_ids"])
      return encoded

    def encode(self, *args: Any, **kwargs: Any) -> Any:
      ids = super().encode(*args, **kwargs)
      check(ids)
      return ids

  Refusing.__name__, Refusing.__qualname__ = kind.__name__, kind.__qualname__  # as it is saved
  tokenizer.__class__ = Refusing
  return tokenizer


def _flat(ids: Any) -> Iterator[int]:
  for one in ids:
    if hasattr(one, "__len__"):
      yield from _flat(one)
    else:
      yield int(one)


def check_vocabulary(tokenizer: Any, vocab_size: int, where: str) -> None:
  """Checks that a tokenizer fits a model with this many token embeddings.

  Embedding tables are often padded a little beyond the tokenizer. Where they are shorter, it is
  because tokens were added that the model never sees.

  Raises:
    UserError: it does not fit.
  """
  ids = set(tokenizer.get_vocab().values())
  num_ids, own = max(ids, default=-1) + 1, ids - set(tokenizer.added_tokens_decoder)
  max_difference = max(256, vocab_size // 10)
  too_many = max(own, default=-1) >= vocab_size + max_difference
  if num_ids < vocab_size - max_difference or too_many:
    raise UserError(
      f"the tokenizer in {where} has {num_ids} tokens and the model {vocab_size}: it is the "
      "tokenizer of another model; put the right tokenizer files there, or none"
    )


def _post_processor(tokenizer: Tokenizer, before: list[str], after: list[str]) -> Any:
  """The post-processor that puts tokens before and after each text."""
  ids = {token: tokenizer.token_to_id(token) for token in (*before, *after)}
  single = [*before, "$A", *after]
  pair = [*single, *(f"{part}:1" for part in (*before, "$B", *after))]
  return processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(ids.items()))


def _token(
  value: Metadata, tokens: list[str], key: str, default: int | None, where: str
) -> str | None:
  index = value(key, default)
  if index is None:
    return None
  if not 0 <= index < len(tokens):
    raise UserError(f"{where}: {key} is {index}, which is no token of its {len(tokens)}")
  return tokens[index]


def _with_pad_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
  """Sets a missing pad token to the end token: padding needs an id, though it is masked."""
  if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
    tokenizer.pad_token = tokenizer.eos_token
  return tokenizer
