"""Tokenizers as they are written: read by transformers 5 and by transformers 4."""

import json

import pytest
import transformers

from frozen_jax.text.tokenizer_files import save_tokenizer
from tests.run.task_files import make_words


@pytest.mark.parametrize("named", ["TokenizersBackend", "PreTrainedTokenizerFast"])
def test_the_class_is_one_that_both_versions_know(tmp_path, named):
  make_words().save_pretrained(str(tmp_path / "given"))
  config = json.loads((tmp_path / "given" / "tokenizer_config.json").read_text())
  text = json.dumps(config | {"tokenizer_class": named})
  (tmp_path / "given" / "tokenizer_config.json").write_text(text)
  given = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "given"))
  save_tokenizer(given, tmp_path / "written", model_max_length=7, padding_side=None)
  written = json.loads((tmp_path / "written" / "tokenizer_config.json").read_text())
  assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
  assert written["model_max_length"] == 7 and "padding_side" not in written
  again = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "written"))
  text = "the capital of Peru is"
  assert again(text)["input_ids"] == given(text)["input_ids"] and again.model_max_length == 7
