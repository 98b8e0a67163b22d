"""Folders of cross-encoders: to sentence-transformers and back, gradients included."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from sentence_transformers import CrossEncoder

from frozen_jax.backbones import encoder as text_encoder
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.data.pair_encoder import PairEncoder, pad_pairs
from frozen_jax.evaluation.pair_scores import score_pairs
from frozen_jax.export.cross_encoder import read_cross_encoder, write_cross_encoder
from frozen_jax.methods import re_ranker
from tests.re_ranking import KINDS, pair_encoder, pairs, save

pytestmark = pytest.mark.program

IDENTITY = torch.nn.Identity()


def read(folder, **options):
  """What is in a folder, as a re-ranker with its trained tree and its texts."""
  base = read_cross_encoder(str(folder), progress=False)
  made = re_ranker.ReRanker.build(base.encoder, base.head, base.initial_head, **options)
  types = base.encoder.config.types
  return base, made, made.init(jax.random.key(0)), pair_encoder(base.encoder.tokenizer, types)


def ours(folder, given, **options):
  _, made, tree, texts = read(folder, **options)
  return score_pairs(made, tree, made.frozen(), texts, given, progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_written_there_gives_the_same_scores_here(kind, tmp_path):
  save(kind, tmp_path / "model")
  theirs = CrossEncoder(str(tmp_path / "model"), device="cpu")
  theirs.save_pretrained(str(tmp_path / "there"))
  given = pairs(30)
  expected = theirs.predict(given, activation_fn=IDENTITY)
  assert np.ptp(expected) > 0.1
  for folder in ("model", "there"):
    np.testing.assert_allclose(ours(tmp_path / folder, given), expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_written_here_gives_the_same_scores_there(kind, tmp_path):
  save(kind, tmp_path / "base")
  base, made, tree, _ = read(tmp_path / "base")
  tree = jax.tree.map(lambda leaf: leaf + 0.01 * jnp.sign(leaf), tree)  # as training changes it
  weights = made.weights(tree, made.frozen())
  folder = write_cross_encoder(
    tmp_path / "made", base.encoder, weights, made.head, tree["head"], 40
  )
  theirs = CrossEncoder(str(folder), device="cpu")
  assert theirs.max_seq_length == 40
  given = [*pairs(30), ("w1 w2", " ".join(["w3 w4"] * 30))]  # the last one is cut
  scores = theirs.predict(given)
  np.testing.assert_allclose(ours(folder, given), scores, atol=1e-4)
  assert np.abs(scores - ours(tmp_path / "base", given)).max() > 1e-3
  again = read(folder)[2]
  jax.tree.map(np.testing.assert_array_equal, again, tree)


def test_low_rank_updates_are_written_as_weights(tmp_path):
  save("bert", tmp_path / "base")
  base, made, tree, texts = read(tmp_path / "base", train="lora")
  tree["lora"] = jax.tree.map(lambda leaf: leaf + 0.1, tree["lora"])
  weights = made.weights(tree, made.frozen())
  folder = write_cross_encoder(
    tmp_path / "made", base.encoder, weights, made.head, tree["head"], 40
  )
  given = pairs(5)
  expected = score_pairs(made, tree, made.frozen(), texts, given, progress=False)
  np.testing.assert_allclose(CrossEncoder(str(folder)).predict(given), expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_all_parameters_equal_torch(kind, tmp_path):
  model = save(kind, tmp_path / "model")
  base, made, tree, texts = read(tmp_path / "model")
  given = pairs(12)
  flat = pad_pairs(texts(given), texts.lengths)
  batch = {name: a[None] for name, a in flat.items()}
  batch["text_index"] = np.arange(12, dtype=np.int32).reshape(1, 3, 4)
  (loss, metrics), slopes = jax.jit(jax.value_and_grad(made.loss, has_aux=True))(
    tree, made.frozen(), batch, None
  )
  flat = {name: torch.tensor(a.reshape(12, -1)) for name, a in flat.items()}
  more = {"token_type_ids": flat["types"]} if base.encoder.config.types > 1 else {}
  scores = model(flat["tokens"], attention_mask=flat["mask"], **more).logits.reshape(3, 4)
  expected = torch.nn.functional.cross_entropy(scores, torch.zeros(3, dtype=torch.long))
  expected.backward()
  np.testing.assert_allclose(loss, expected.item(), rtol=1e-4)
  assert int(metrics["correct"]) == int((scores.argmax(1) == 0).sum())
  with torch.no_grad():
    for weight in model.parameters():
      weight.copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
  model.save_pretrained(tmp_path / "model")
  theirs = paths.flatten(read(tmp_path / "model")[2])
  slopes = paths.flatten(slopes)
  assert slopes.keys() == theirs.keys()
  for path, slope in slopes.items():
    scale = float(np.abs(theirs[path]).max())
    # Biases that move all scores of a query, or of a question, alike.
    assert scale > 1e-5 or path.endswith(("attn/k/bias", "score/bias", "head/norm/bias")), path
    np.testing.assert_allclose(slope, theirs[path], atol=1e-4 * max(1, scale), err_msg=path)


def test_any_encoder_can_be_the_start(tmp_path):
  """Of a bare encoder the pooler starts the head, and the line to the score is new."""
  model = save("bert", tmp_path / "whole")
  model.bert.save_pretrained(tmp_path / "bare")
  base = read_cross_encoder(str(tmp_path / "bare"), progress=False)
  assert base.initial_head.keys() == {"dense"}
  made = re_ranker.ReRanker.build(base.encoder, base.head, base.initial_head)
  tree = made.init(jax.random.key(0))
  np.testing.assert_array_equal(
    tree["head"]["dense"]["kernel"].T, model.bert.pooler.dense.weight.detach()
  )
  assert np.abs(tree["head"]["score"]["kernel"]).max() > 0
  other = made.init(jax.random.key(1))
  assert (other["head"]["score"]["kernel"] != tree["head"]["score"]["kernel"]).any()
  wanted = paths.flatten(text_encoder.param_shapes(made.encoder))
  assert paths.flatten(tree["encoder"]).keys() == wanted.keys()


def test_a_frozen_head_over_the_mean_is_no_cross_encoder_of_bert(tmp_path):
  save("bert", tmp_path / "base")
  base, made, tree, _ = read(tmp_path / "base")
  odd = dataclasses.replace(made.head, pooling="mean")
  with pytest.raises(UserError, match="a CrossEncoder of the bert type has the head"):
    write_cross_encoder(tmp_path / "x", base.encoder, tree["encoder"], odd, tree["head"], 40)
  assert not (tmp_path / "x").exists()


def test_folders_that_are_no_re_ranker(tmp_path, encoder_folder):
  save("bert", tmp_path / "three", num_labels=3)
  with pytest.raises(UserError, match="gives 3 labels"):
    read_cross_encoder(str(tmp_path / "three"), progress=False)
  with pytest.raises(UserError, match="of the t5 type, for which no re-ranker is known"):
    read_cross_encoder(str(encoder_folder), progress=False)
  with pytest.raises(UserError, match="there is no model"):
    read_cross_encoder(str(tmp_path / "nothing"), progress=False)


@pytest.fixture
def encoder_folder(tmp_path):
  import transformers

  sizes = {"vocab_size": 64, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 16}
  made = transformers.T5EncoderModel(transformers.T5Config(**sizes, num_decoder_layers=1))
  made.save_pretrained(tmp_path / "t5")
  return tmp_path / "t5"


def test_what_is_written_replaces_what_was_there(tmp_path):
  save("bert", tmp_path / "base")
  CrossEncoder(str(tmp_path / "base"), device="cpu").save_pretrained(str(tmp_path / "made"))
  base, made, tree, _ = read(tmp_path / "base")
  tree["head"]["score"]["bias"] = jnp.ones(1)
  write_cross_encoder(tmp_path / "made", base.encoder, tree["encoder"], made.head, tree["head"], 32)
  tensors = safetensors.numpy.load_file(tmp_path / "made" / "model.safetensors")
  assert tensors["classifier.bias"] == [1.0]
  settings = json.loads((tmp_path / "made" / "config.json").read_text())
  assert settings["architectures"] == ["BertForSequenceClassification"]
  given = pairs(4)
  theirs = CrossEncoder(str(tmp_path / "made"), device="cpu").predict(given)
  np.testing.assert_allclose(ours(tmp_path / "made", given), theirs, atol=1e-4)


def test_minilm_as_a_cross_encoder(tmp_path):
  """The real encoder and its real tokenizer, whose own file asks for padding to 128."""
  try:
    base = read_cross_encoder("minilm-l6-v2", progress=False)
  except UserError as error:
    if "cannot download" not in str(error):
      raise
    pytest.skip(f"the real encoder is neither cached nor to be had: {error}")
  made = re_ranker.ReRanker.build(base.encoder, base.head, base.initial_head)
  tree = made.init(jax.random.key(0))
  tree["head"]["score"]["kernel"] *= 50  # scores of a trained one's size
  weights = made.weights(tree, made.frozen())
  write_cross_encoder(tmp_path, base.encoder, weights, made.head, tree["head"], 64)
  given = [
    ("Who wrote Emma?", "Emma is a novel by Jane Austen, published in 1815; " * 20),
    ("Who wrote Emma?", "Emma is a novel by Jane Austen."),
    ("naïve café?", "İstanbul — 東京 and Ωmega; don't."),
  ]
  texts = PairEncoder(base.encoder.tokenizer, 2, 512, (32, 64))
  scores = score_pairs(made, tree, made.frozen(), texts, given, progress=False)
  assert np.ptp(scores) > 0.05
  np.testing.assert_allclose(CrossEncoder(str(tmp_path)).predict(given), scores, atol=1e-4)
