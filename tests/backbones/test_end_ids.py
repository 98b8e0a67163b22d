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
    writer.add_token_types([1] * 93 + [3, 3, 1])  # the last is text, no control token
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)

  path = gguf_file(llama(), change=change)
  assert end_ids.read(GGUFFile(path), 96, None) == (2, 5, 93, 94)
  bare = gguf_file(llama(), name="bare.gguf")
  assert end_ids.read(GGUFFile(bare), 96, TOKENIZER) == (9,)
