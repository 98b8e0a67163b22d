"""The vocabularies in GGUF files' metadata -> tokenizers of the `tokenizers` package.

Two kinds, by the names of llama.cpp (src/llama-vocab.cpp): "gpt2", byte-level BPE with a list of
merges (Radford et al. 2019), and "llama", BPE of SentencePiece (Kudo and Richardson 2018), which
merges pairs that give the token of the highest score first, and falls back to bytes.

GGUF files do not record, so tokenizers from them lack: the NFC normalisation of Qwen and GPT-NeoX,
and the stripping of blanks around Phi-3's special tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from frozen_jax.core.errors import UserError

Metadata = Callable[..., Any]  # value(key, default=None), as `GGUFFile.value`

_NORMAL, _UNKNOWN, CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # enum llama_token_type
_BLANK = "\u2581"  # what SentencePiece writes for a blank

_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
  rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
  r"|\p{N}" + _OTHERS
)
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
  rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}"
  rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}"
  r"|\p{N}{1,3}" + _OTHERS
)


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
  """How text is split before merges apply.

  split: a regular expression; None: that of GPT-2. ignore_merges: a piece that is a token becomes
  that token without merges. add_bos: texts begin with the bos token, unless the file sets it.
  """

  split: str | None = None
  ignore_merges: bool = False
  add_bos: bool = False


# By the name in `tokenizer.ggml.pre`.
#
# "smollm": llama.cpp and the model's own tokenizer.json also split digits beforehand;
# transformers' reader of GGUF files does not. The ids here are those of transformers. They differ
# only where two or more blanks or line ends precede a digit ("a  1": one token for both blanks in
# llama.cpp, two here), and in a few rare numerals such as a superscript after a blank.
PRE_TOKENIZERS = {
  "default": PreTokenizer(),
  "gpt-2": PreTokenizer(),
  "smollm": PreTokenizer(),
  "olmo": PreTokenizer(),  # also of GPT-NeoX and Pythia
  "mpt": PreTokenizer(),
  "llama-bpe": PreTokenizer(_LLAMA3, ignore_merges=True, add_bos=True),
  "llama3": PreTokenizer(_LLAMA3, ignore_merges=True, add_bos=True),
  "llama-v3": PreTokenizer(_LLAMA3, ignore_merges=True, add_bos=True),
  "smaug-bpe": PreTokenizer(_LLAMA3),  # SmolLM3
  "dbrx": PreTokenizer(_LLAMA3),  # Phi-4
  "qwen2": PreTokenizer(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
  "deepseek-r1-qwen": PreTokenizer(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
  "gpt-4o": PreTokenizer(_GPT4O),
  "tekken": PreTokenizer(_TEKKEN, ignore_merges=True, add_bos=True),
  "bloom": PreTokenizer(r" ?[^(\s|.,!?…。，、।۔،)]+"),
}


def byte_level(value: Metadata, tokens: Sequence[str], where: str) -> Tokenizer:
  """The kind "gpt2".

  Raises:
    UserError: a merge gives a string that is no token.
  """
  pre = PRE_TOKENIZERS[value("tokenizer.ggml.pre", "default")]
  merges = [tuple(pair.split(" ", 1)) for pair in value("tokenizer.ggml.merges", [])]
  vocabulary = {token: index for index, token in enumerate(tokens)}
  try:
    model = models.BPE(vocabulary, merges, ignore_merges=pre.ignore_merges)
  except Exception as error:  # the package raises bare Exceptions
    raise UserError(f"{where}: the merges do not fit the tokens ({error}); get it again") from None
  tokenizer = Tokenizer(model)
  if pre.split is None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  else:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
      [
        pre_tokenizers.Split(Regex(pre.split), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
      ]
    )
  tokenizer.decoder = decoders.ByteLevel()
  _add_special_tokens(tokenizer, tokens, value("tokenizer.ggml.token_type", []))
  return tokenizer


def sentencepiece(value: Metadata, tokens: Sequence[str], where: str) -> Tokenizer:
  """The kind "llama".

  Raises:
    UserError: the file lacks the scores or types of its tokens.
  """
  scores = value("tokenizer.ggml.scores", [])
  types = value("tokenizer.ggml.token_type", [])
  if not len(scores) == len(types) == len(tokens):
    raise UserError(
      f"the tokenizer in {where} has {len(tokens)} tokens, {len(scores)} scores and {len(types)} "
      "types; the file is damaged: get it again"
    )
  vocabulary = {token: index for index, token in enumerate(tokens)}
  unknown = [token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN]
  tokenizer = Tokenizer(
    models.BPE(
      vocabulary,
      _merges(tokens, scores, types),
      unk_token=unknown[0] if unknown else None,
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  blanks = normalizers.Replace(" ", _BLANK)
  decoding = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
  # As in llama.cpp, a blank is also set before text that follows a special token.
  prefix = value("tokenizer.ggml.add_space_prefix", True)
  tokenizer.normalizer = (
    normalizers.Sequence([normalizers.Prepend(_BLANK), blanks]) if prefix else blanks
  )
  tokenizer.decoder = decoders.Sequence(
    [*decoding, decoders.Strip(" ", 1, 0)] if prefix else decoding
  )
  _add_special_tokens(tokenizer, tokens, types)
  return tokenizer


def _merges(
  tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
  """Every pair of tokens that gives a token, the highest score of the result first.

  Special tokens and those of bytes are neither parts nor results. Of the pairs with the same result
  the one with the longer left part comes first, since SentencePiece merges runs of the same letter
  from left to right.
  """
  scored = {
    token: score
    for token, score, kind in zip(tokens, scores, types, strict=True)
    if kind == _NORMAL
  }
  merges = [
    (score, split, token)
    for token, score in scored.items()
    for split in range(1, len(token))
    if token[:split] in scored and token[split:] in scored
  ]
  merges.sort(key=lambda merge: merge[:2], reverse=True)
  return [(token[:split], token[split:]) for _, split, token in merges]


def _add_special_tokens(tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
  """Adds the tokens that are found in the text before it is split."""
  for added_kind, special in ((CONTROL, True), (_USER_DEFINED, False)):
    added = [token for token, kind in zip(tokens, types, strict=False) if kind == added_kind]
    add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
    add([AddedToken(token, normalized=False, special=special) for token in added])
