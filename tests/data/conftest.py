"""A small tokenizer of whole words, made on the spot, and a cache of the tests' own."""

import pytest
import tokenizers
import transformers


@pytest.fixture(scope="session")
def words():
  """Numbers 0..99, some words and `<end>`; every text comes apart at white space."""
  listed = ["<end>", "<unk>", "Question:", "Answer:", *map(str, range(100))]
  listed += ["what", "is", "red", "green", "blue"]
  vocabulary = {word: index for index, word in enumerate(listed)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>", pad_token="<end>"
  )


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
  """A cache folder of the session's own, empty at first."""
  folder = tmp_path_factory.mktemp("cache")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("FROZEN_JAX_CACHE", str(folder))
    yield folder
