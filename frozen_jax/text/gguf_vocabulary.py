"""The vocabularies in GGUF files' metadata -> tokenizers of the `tokenizers` package.

Two kinds, by the names of llama.cpp (src/llama-vocab.cpp): "gpt2", byte-level BPE with a list of
merges (Radford et al. 2019), and "llama", BPE of SentencePiece (Kudo and Richardson 2018), which
merges what makes the token of the highest score and spells what has no token in bytes.

What GGUF files do not say, we cannot do either: the composing of letters and accents (NFC) before
the text of Qwen and GPT-NeoX is cut, and the blanks that Phi-3's special tokens swallow.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from frozen_jax.core.errors import UserError

Metadata = Callable[..., Any]  # value(key, default=None), as `GGUFFile.value`

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # enum llama_token_type
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
class Pre:
  """How text is cut before merges apply.

  split: a regular expression; None is GPT-2's own. whole: a piece that is a token is that token,
  whatever the merges say. bos: texts begin with the bos token where the file is silent.
  """

  split: str | None = None
  whole: bool = False
  bos: bool = False


# By the name in `tokenizer.ggml.pre`.
#
# "smollm": llama.cpp and the model's own tokenizer.json also cut digits apart beforehand;
# transformers' reader of GGUF files does not. We give the same ids as transformers: they differ
# only where two or more blanks or line ends stand right before a digit ("a  1": one token for
# both blanks there, two here), and in a few rare numerals such as a superscript after a blank.
PRE_TOKENIZERS = {
  "default": Pre(),
  "gpt-2": Pre(),
  "smollm": Pre(),
  "olmo": Pre(),  # GPT-NeoX and Pythia, too
  "mpt": Pre(),
  "llama-bpe": Pre(_LLAMA3, whole=True, bos=True),
  "llama3": Pre(_LLAMA3, whole=True, bos=True),
  "llama-v3": Pre(_LLAMA3, whole=True, bos=True),
  "smaug-bpe": Pre(_LLAMA3),  # SmolLM3
  "dbrx": Pre(_LLAMA3),  # Phi-4
  "qwen2": Pre(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
  "deepseek-r1-qwen": Pre(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
  "gpt-4o": Pre(_GPT4O),
  "tekken": Pre(_TEKKEN, whole=True, bos=True),
  "bloom": Pre(r" ?[^(\s|.,!?…。，、।۔،)]+"),
}


def byte_level(value: Metadata, tokens: Sequence[str], where: str) -> Tokenizer:
  """The kind "gpt2".

  Raises:
    UserError: its merges make what is no token.
  """
  pre = PRE_TOKENIZERS[value("tokenizer.ggml.pre", "default")]
  merges = [tuple(pair.split(" ", 1)) for pair in value("tokenizer.ggml.merges", [])]
  vocabulary = {token: index for index, token in enumerate(tokens)}
  try:
    model = models.BPE(vocabulary, merges, ignore_merges=pre.whole)
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
  _add_whole(tokenizer, tokens, value("tokenizer.ggml.token_type", []))
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
  unknown = [token for token, its in zip(tokens, types, strict=True) if its == _UNKNOWN]
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
  # llama.cpp sets a blank before what follows a token that is taken whole, too.
  prefix = value("tokenizer.ggml.add_space_prefix", True)
  tokenizer.normalizer = (
    normalizers.Sequence([normalizers.Prepend(_BLANK), blanks]) if prefix else blanks
  )
  tokenizer.decoder = decoders.Sequence(
    [*decoding, decoders.Strip(" ", 1, 0)] if prefix else decoding
  )
  _add_whole(tokenizer, tokens, types)
  return tokenizer


def _merges(
  tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
  """Every way to make a token of two others, the highest score first.

  Tokens that are taken whole, and those of bytes, neither are made nor make others. Of one token's
  ways, that with the longer left part comes first: so it is in runs of the same letter, which
  SentencePiece merges from left to right.
  """
  made = {
    token: score for token, score, its in zip(tokens, scores, types, strict=True) if its == _NORMAL
  }
  found = [
    (score, cut, token)
    for token, score in made.items()
    for cut in range(1, len(token))
    if token[:cut] in made and token[cut:] in made
  ]
  found.sort(key=lambda way: way[:2], reverse=True)
  return [(token[:cut], token[cut:]) for _, cut, token in found]


def _add_whole(tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
  """Tokens that are found in the text before anything else is cut."""
  for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
    whole = [token for token, its in zip(tokens, types, strict=False) if its == kind]
    add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
    add([AddedToken(token, normalized=False, special=special) for token in whole])
