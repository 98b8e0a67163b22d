"""The vocabularies of GGUF files.

SentencePiece's against its own algorithm and transformers; how text is cut before byte-level
merges against transformers.
"""

import itertools

import gguf
import numpy as np
import pytest
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers.integrations.gguf import gguf_tokenizer_mapping

from frozen_jax.core.errors import UserError
from frozen_jax.text import gguf_vocabulary
from frozen_jax.text import tokenizer as tokenizers
from tests.text.test_tokenizer import CHOSEN, varied_strings

pytestmark = pytest.mark.program

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BLANK = "\u2581"


def trained(blanks_whole=False):
  """Tokens, scores and types as SentencePiece would train them on the chosen strings."""
  whole = [" " * n for n in (4, 3, 2)] if blanks_whole else []
  frame = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), ("[PAD3]", UNUSED)]
  frame += [(token, USER_DEFINED) for token in ("<think>", *whole)]
  frame += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
  trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>"], show_progress=False)
  learner = Tokenizer(models.BPE(unk_token="<unk>"))
  texts = [(BLANK + text.replace(" ", BLANK)) for text in CHOSEN if text.isascii()]
  learner.train_from_iterator(texts * 2, trainer)
  learned = sorted(learner.get_vocab().items(), key=lambda pair: pair[1])
  pieces = [token for token, _ in learned if token not in dict(frame)]
  # As in Llama's and Gemma's files, a token's score falls with its place; letters come last.
  pieces = sorted(pieces, key=lambda token: len(token) == 1)
  tokens = [*(token for token, _ in frame), *pieces]
  types = [*(its for _, its in frame), *[NORMAL] * len(pieces)]
  scores = [-1000.0 if its in (CONTROL, USER_DEFINED) else 0.0 for _, its in frame]
  return tokens, scores + [-float(place) for place in range(len(pieces))], types


def metadata(blanks_whole=False, **changes):
  tokens, scores, types = trained(blanks_whole)
  values = {"model": "llama", "pre": "default", "tokens": tokens, "scores": scores}
  values |= {"token_type": types, **changes}
  return lambda key, default=None: values.get(key.removeprefix("tokenizer.ggml."), default)


def built(value):
  return tokenizers.from_gguf(value, len(value("tokenizer.ggml.tokens")), "x.gguf")


def by_the_algorithm(text, value):
  """The ids that SentencePiece's algorithm gives, one merge after the other, as llama.cpp does."""
  tokens, types = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
  ids = {token: place for place, token in enumerate(tokens)}
  scores = dict(zip(tokens, value("tokenizer.ggml.scores"), strict=True))
  whole = [t for t, its in zip(tokens, types, strict=True) if its in (CONTROL, USER_DEFINED)]
  usual = {t for t, its in zip(tokens, types, strict=True) if its == NORMAL}
  found = [ids["<s>"]]
  for part in cut_at(text, sorted(whole, key=len, reverse=True)):
    if part in whole:
      found.append(ids[part])
      continue
    blank = BLANK if value("tokenizer.ggml.add_space_prefix", True) and part else ""
    symbols = list(blank + part.replace(" ", BLANK))
    while True:
      pairs = [
        (scores[left + right], -place)
        for place, (left, right) in enumerate(itertools.pairwise(symbols))
        if left + right in usual
      ]
      if not pairs:
        break
      place = -max(pairs)[1]
      symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
    for symbol in symbols:
      known = symbol in usual
      found += [ids[symbol]] if known else [ids[f"<0x{b:02X}>"] for b in symbol.encode()]
  return found


def cut_at(text, whole):
  for token in whole:
    if token in text:
      before, after = text.split(token, 1)
      return [*cut_at(before, whole), token, *cut_at(after, whole)]
  return [text] if text else []


STRINGS = [*varied_strings(), "<think>a", "a<think> b</s><s>", "[PAD3]", "<0x41>", BLANK, "x" * 99]


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("blanks_whole", [False, True])
def test_ids_equal_the_algorithm_of_sentencepiece(prefix, blanks_whole):
  value = metadata(blanks_whole, add_space_prefix=prefix)
  tokenizer = built(value)
  ours = tokenizer(STRINGS)["input_ids"]
  wanted = [by_the_algorithm(text, value) for text in STRINGS]
  assert [s for s, a, b in zip(STRINGS, ours, wanted, strict=True) if a != b] == []
  assert len({i for ids in ours for i in ids}) > 250


def gguf_of(value, path, architecture):
  """As much of a model's file as transformers wants to see."""
  writer = gguf.GGUFWriter(path, architecture)
  for number in (writer.add_block_count, writer.add_head_count, writer.add_embedding_length):
    number(1)
  writer.add_tokenizer_model("llama")
  writer.add_tokenizer_pre("default")
  writer.add_token_list(value("tokenizer.ggml.tokens"))
  writer.add_token_scores(value("tokenizer.ggml.scores"))
  writer.add_token_types(value("tokenizer.ggml.token_type"))
  writer.add_add_space_prefix(value("tokenizer.ggml.add_space_prefix", True))
  for add, index in ((writer.add_unk_token_id, 0), (writer.add_bos_token_id, 1)):
    add(index)
  writer.add_eos_token_id(2)
  writer.add_tensor("token_embd.weight", np.ones((2, 2), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


@pytest.mark.parametrize("architecture, prefix", [("phi3", True), ("gemma2", False)])
def test_ids_and_text_equal_transformers(tmp_path, architecture, prefix):
  value = metadata(add_space_prefix=prefix)
  gguf_of(value, tmp_path / "model.gguf", architecture)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
  ours = built(value)
  strings = varied_strings()
  ids = ours(strings)["input_ids"]
  assert ids == theirs(strings)["input_ids"]
  assert ours.batch_decode(ids) == theirs.batch_decode(ids)
  plain = [text for text in strings if "<s>" not in text]
  back = ours.batch_decode(ours(plain)["input_ids"], skip_special_tokens=True)
  assert back == plain


def test_what_a_file_says_of_bos_eos_and_padding():
  ours = built(metadata())
  assert (ours.bos_token_id, ours.eos_token_id, ours.unk_token_id, ours.pad_token_id) == (
    1,
    2,
    0,
    2,
  )
  assert ours.encode("a")[0] == 1 and ours.encode("a")[-1] != 2  # as llama.cpp where it is silent
  ours = built(metadata(add_bos_token=False, add_eos_token=True, padding_token_id=3))
  assert ours.encode("a")[0] != 1 and ours.encode("a")[-1] == 2 and ours.pad_token_id == 3
  assert built(metadata(bos_token_id=2, eos_token_id=1)).encode("a")[0] == 2


def test_without_bytes_what_has_no_letters_is_unknown():
  value = metadata()
  tokens = value("tokenizer.ggml.tokens")
  types = [UNUSED if t == BYTE else t for t in value("tokenizer.ggml.token_type")]
  tokens = [f"[{t}]" if t.startswith("<0x") else t for t in tokens]
  ours = built(metadata(tokens=tokens, token_type=types))
  assert ours.convert_ids_to_tokens(ours.encode("a東京a")) == ["<s>", BLANK + "a", "<unk>", "a"]


@pytest.mark.parametrize("lacking", ["scores", "token_type"])
def test_a_file_without_scores_or_types(lacking):
  with pytest.raises(UserError, match="damaged"):
    built(metadata(**{lacking: []}))


def pieces(pre, text):
  """What is between the cuts, in the letters that stand for bytes."""
  return [piece for piece, _ in pre.pre_tokenize_str(text)]


def byte_level(**changes):
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens = ["<s>", "</s>", *letters, "th", "the", "then"]
  values = {"model": "gpt2", "tokens": tokens, "merges": ["t h", "th e"], "bos_token_id": 0}
  values |= {"eos_token_id": 1, "token_type": [3, 3] + [1] * (len(tokens) - 2), **changes}
  return lambda key, default=None: values.get(key.removeprefix("tokenizer.ggml."), default)


# transformers cuts BLOOM's text as GPT-2's: it is tested by itself.
@pytest.mark.parametrize("name", [n for n in gguf_vocabulary.PRE_TOKENIZERS if n != "bloom"])
def test_text_is_cut_as_transformers_cuts_it(name):
  ours = built(byte_level(pre=name)).backend_tokenizer.pre_tokenizer
  theirs = pre_tokenizers.ByteLevel(add_prefix_space=False)
  if name in gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS:
    split = Regex(gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS[name])
    theirs = pre_tokenizers.Sequence(
      [
        pre_tokenizers.Split(split, behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
      ]
    )
  for text in varied_strings():
    assert pieces(ours, text) == pieces(theirs, text)


def test_text_is_cut_as_bloom_cuts_it():
  ours = built(byte_level(pre="bloom")).backend_tokenizer.pre_tokenizer
  assert pieces(ours, "Hello, world! (x)[y]  12") == (
    ["Hello", ",", "Ġworld", "!Ġ(", "x", ")", "[y]", "Ġ", "Ġ12"]
  )


@pytest.mark.parametrize("pre, wanted", [("llama-bpe", ["<s>", "then"]), ("qwen2", ["the", "n"])])
def test_llama_3_takes_tokens_whole_and_begins_with_bos(pre, wanted):
  ours = built(byte_level(pre=pre))
  assert ours.convert_ids_to_tokens(ours.encode("then")) == wanted
