"""The end tokens of folders and GGUF files, in the order of precedence of transformers."""

import json
from types import SimpleNamespace

import pytest

from frozen_jax.backbones import end_ids
from frozen_jax.backbones.gguf_file import GGUFFile
from frozen_jax.core.errors import UserError

TOKENIZER = SimpleNamespace(eos_token_id=9)


@pytest.mark.parametrize(
  "generation, config, tokenizer, expected",
  [
    ({"eos_token_id": 7}, {"eos_token_id": 2}, TOKENIZER, (7,)),
    ({"eos_token_id": [50, 7, 50]}, {"eos_token_id": 2}, TOKENIZER, (7, 50)),
    (None, {"eos_token_id": 2}, TOKENIZER, (2,)),
    (None, {"eos_token_id": [5, 2]}, None, (2, 5)),
    (None, {"eos_token_id": None}, TOKENIZER, (9,)),
    ({"eos_token_id": None}, {"eos_token_id": 2}, TOKENIZER, (9,)),  # the file counts, and has none
    ({"eos_token_id": [1, 106]}, {}, None, (1,)),  # beyond the vocabulary
    (None, {}, None, ()),
  ],
)
def test_a_folder(tmp_path, generation, config, tokenizer, expected):
  for name, values in (("generation_config.json", generation), ("config.json", config)):
    if values is not None:
      (tmp_path / name).write_text(json.dumps(values))
  assert end_ids.read(tmp_path, 96, tokenizer) == expected


@pytest.mark.parametrize("value", ["</s>", [1, "2"], True, 1.5])
def test_an_id_that_is_none(tmp_path, value):
  (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
  with pytest.raises(UserError, match="generation_config.json: eos_token_id is"):
    end_ids.read(tmp_path, 96, TOKENIZER)


def test_a_gguf_file(llama, gguf_file):
  tokens = [f"t{i}" for i in range(93)] + ["<|end|>", "<end_of_turn>", "<|im_end|>"]

  def change(writer):
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 93 + [3, 4, 1])  # of any type, as in llama.cpp
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)

  path = gguf_file(llama(), change=change)
  assert end_ids.read(GGUFFile(path), 96, None) == (2, 5, 93, 94, 95)
  bare = gguf_file(llama(), name="bare.gguf")
  assert end_ids.read(GGUFFile(bare), 96, TOKENIZER) == (9,)


class Vocabulary(GGUFFile):
  """The metadata of a GGUF file, without a file."""

  def __init__(self, tokens, model=None, **ids):
    self.location = "model.gguf"
    named = {f"tokenizer.ggml.{name}_token_id": value for name, value in ids.items()}
    self._metadata = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.model": model, **named}

  def value(self, key, default=None):
    return self._metadata.get(key, default)


@pytest.mark.parametrize(
  "texts, ids, expected",
  [  # as llama.cpp's special_eog_ids, commit 00ad355 of src/llama-vocab.cpp
    (["<s>", "</s>", "<|im_end|>"], {"eos": 2}, (1, 2)),
    (["<eos>", "[EOS]", "[EOT]", "<turn|>", "[e~["], {}, (0, 1, 2, 3, 4)),
    (["<｜end▁of▁sentence｜>", "<|eom_id|>", "_<EOT>"], {}, (0, 1, 2)),
    (["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|fim_middle|>"], {}, (0, 1, 2)),
    (["<|fim_pad|>", "a", "<|file_sep|>"], {"fim_pad": 1, "fim_rep": 3}, (1, 2, 3)),
    (["<|end|>", "<|return|>", "<|call|>"], {"eos": 1}, (1, 2)),  # gpt-oss
    (["<|end|>", "<|return|>"], {"eot": 0}, (0, 1)),
    (["<|end|>", "<|flush|>", "<|calls|>"], {"eot": 0}, (1, 2)),
    (["</s>", "<|tool_response>"], {}, (1,)),  # Gemma 4
    (["a"] * 20, {"model": "llama"}, (2,)),  # what the format means by no eos
    (["a"] * 20, {"model": "gpt2"}, (11,)),
    (["a"] * 20, {"model": "gpt2", "eos": 3}, (3,)),
  ],
)
def test_of_a_gguf_file_what_llama_cpp_takes_for_an_end(texts, ids, expected):
  assert end_ids.read(Vocabulary(texts, **ids), 96, None) == expected
