"""What is stored of texts is shared by encoders that compute the same, and by no others."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.models.frozen_encoder import load_encoder
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.models.text_states import text_states
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.pipelines.retrieve_read.retrieve import embedding
from frozen_jax.retrieval.corpus import Passage
from frozen_jax.retrieval.dense_index import build_dense
from frozen_jax.sharding.mesh import make_mesh
from tests.backbones import encoder_cases
from tests.run.task_files import make_words

pytestmark = pytest.mark.program

MODULES = [
  {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
  {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
NORMALISE = {"idx": 2, "name": "2", "path": "2_N", "type": "sentence_transformers.models.Normalize"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A random BERT that pools the mean of its states, as sentence-transformers saves it."""
  path, tokenizer = tmp_path_factory.mktemp("encoder"), make_words()
  sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 40}
  encoder_cases.make("bert", num_hidden_layers=1, num_attention_heads=4, **sizes).save_pretrained(
    path
  )
  tokenizer.save_pretrained(path)
  write(path / "modules.json", MODULES)
  write(path / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
  return path


def write(path, values):
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(values))


def edit(path, **values):
  write(path, json.loads(path.read_text()) | values)


CHANGES = {
  "pooling": lambda at: write(at / "1_Pooling/config.json", {"pooling_mode_cls_token": True}),
  "normalisation": lambda at: write(at / "modules.json", [*MODULES, NORMALISE]),
  "prompt of passages": lambda at: write(
    at / "config_sentence_transformers.json", {"prompts": {"document": "passage: "}}
  ),
  "prompt of queries": lambda at: write(
    at / "config_sentence_transformers.json", {"prompts": {"query": "query: "}}
  ),
  "longest text": lambda at: write(at / "sentence_bert_config.json", {"max_seq_length": 6}),
  "lower case": lambda at: write(at / "sentence_bert_config.json", {"do_lower_case": True}),
  "norm": lambda at: edit(at / "config.json", layer_norm_eps=0.5),
  "activation": lambda at: edit(at / "config.json", hidden_act="relu"),
}


class Corpus:
  """Two passages."""

  fingerprint = "c" * 64

  def __len__(self):
    return 2

  def __getitem__(self, position):
    return Passage(str(position), "Peru", ("Lima is the capital", "Cuba")[position])


def encoder_like(folder, tmp_path, change):
  """The encoder of a copy of the folder that says something else of the same weights."""
  copy = shutil.copytree(folder, tmp_path / "other")
  CHANGES[change](copy)
  return load_encoder(str(copy))


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_weights_used_otherwise_are_another_encoder(folder, tmp_path, change):
  ours, other = load_encoder(str(folder)), encoder_like(folder, tmp_path, change)
  assert other.fingerprint == ours.fingerprint, "of the weights alone"
  assert other.texts_fingerprint != ours.texts_fingerprint
  assert other.texts_fingerprint.startswith(ours.fingerprint)
  embed = lambda one: embedding(one, 30, make_mesh())
  index = tmp_path / "index"
  build_dense(index, Corpus(), embed(ours), ours.texts_fingerprint, progress=False)
  with pytest.raises(UserError, match="is an index of another encoder"):
    build_dense(index, Corpus(), embed(other), other.texts_fingerprint, progress=False)


@pytest.mark.parametrize("change", ["pooling", "prompt of passages", "norm", "activation"])
def test_states_are_kept_apart(folder, tmp_path, monkeypatch, change):
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path / "cache"))
  encoders = [load_encoder(str(folder)), encoder_like(folder, tmp_path, change)]
  tokens = np.array([[5, 6, 7]], np.int32)
  batch = {"encoder_tokens": tokens, "encoder_mask": np.ones_like(tokens)}

  class Reads:
    encoder_input = "encoder_states"

  for one in encoders:
    lm = FrozenLM("lm", None, {}, None, "", encoder=one)
    states = text_states(TunedModel(lm, Reads()))
    found = states(batch)["encoder_states"]
    np.testing.assert_allclose(found, one.hidden(tokens), atol=1e-5)
    assert (states.hits, states.misses) == (0, 1)
    states.flush()
  again = text_states(TunedModel(lm, Reads()))
  again(batch)
  assert again.hits == 1, "of the same encoder they are found"


def test_what_is_the_same_has_the_same_name(folder, tmp_path):
  copy = load_encoder(str(shutil.copytree(folder, tmp_path / "copy")), dtype="bfloat16")
  ours = load_encoder(str(folder))
  assert copy.texts_fingerprint == ours.texts_fingerprint
  words = make_words()
  words.backend_tokenizer.normalizer = None
  words.add_tokens(["Lima"])
  assert dataclasses.replace(ours, tokenizer=words).texts_fingerprint != ours.texts_fingerprint
