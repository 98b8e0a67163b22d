"""Texts end where `generate` of transformers ends them, by the files of the same folder."""

import dataclasses
import json

import pytest
import torch
import transformers

from frozen_jax import load_frozen
from frozen_jax.models.generation import end_ids
from tests.evaluation.tiny import words

pytestmark = pytest.mark.program

PROMPT, NEW = "5 6 7", 12


def write(path, values):
  if values is None:
    path.unlink(missing_ok=True)
  else:
    path.write_text(json.dumps(values))


def test_the_stops_of_transformers(tmp_path):
  torch.manual_seed(3)
  sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
  config = transformers.LlamaConfig(**sizes, num_attention_heads=4, initializer_range=0.5)
  model = transformers.LlamaForCausalLM(config).eval()
  model.save_pretrained(tmp_path)
  tokenizer = words()
  tokenizer.save_pretrained(tmp_path)
  ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
  generate = {"max_new_tokens": NEW, "do_sample": False}
  free = model.generate(ids, **generate, eos_token_id=None)[0, 3:].tolist()
  settings = json.loads((tmp_path / "config.json").read_text())
  third, sixth = free[2], free[5]
  seen = set()
  for generation, own in (
    ({"eos_token_id": [39, third]}, 0),
    ({"eos_token_id": sixth}, third),
    (None, [0, sixth]),
    (None, third),
    ({}, third),
  ):
    write(tmp_path / "generation_config.json", generation)
    write(tmp_path / "config.json", settings | {"eos_token_id": own})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    out = theirs.generate(ids, **generate)[0, 3:].tolist()
    ends = theirs.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    expected = out[:-1] if out[-1] in ends else out
    lm = load_frozen(str(tmp_path))
    assert lm.generate([PROMPT], max_new_tokens=NEW) == [tokenizer.decode(expected)]
    seen.add(len(out))
  assert len(seen) == 3 and NEW in seen
  # What was trained also ends with the tokenizer's own end token.
  trained = dataclasses.replace(lm.zero_shot(), trained={"some": 1})
  assert end_ids(trained) == (0,)
  other = dataclasses.replace(lm, end_ids=(third,))
  assert end_ids(other.zero_shot()) == (third,)
  assert end_ids(dataclasses.replace(trained, lm=other)) == tuple(sorted((0, third)))
