"""The re-ranker: what is trained and what is not, padding, training by `fit`, and its scores."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import encoder
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.backbones.load_encoder import Encoder
from frozen_jax.core.errors import Interrupted, UserError
from frozen_jax.data.mining import Group
from frozen_jax.data.pair_encoder import Pair, pad_pairs
from frozen_jax.data.pairs import GroupBatches, GroupOptions, validation_batches
from frozen_jax.evaluation.pair_scores import score_pairs
from frozen_jax.evaluation.teacher_forced import teacher_forced_scores
from frozen_jax.methods import re_ranker
from frozen_jax.methods.lora import LoraSettings
from frozen_jax.methods.re_ranker import ReRanker
from frozen_jax.models.tuned_model import batch_loss
from frozen_jax.modules.score_head import HeadConfig
from frozen_jax.sharding.batch import shard_batch
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.training.interruption import StopRequest
from frozen_jax.training.loop import StageRun, fit
from frozen_jax.training.metrics import MetricsWriter
from frozen_jax.training.optimizer import make_optimizer
from frozen_jax.training.settings import TrainSettings
from frozen_jax.training.state import create_state
from frozen_jax.training.step import gradients, make_train_step
from tests.re_ranking import PASSAGES, WORDS, groups, pair_encoder, pairs, unpacked

pytestmark = pytest.mark.program

CONFIG = EncoderConfig(
  vocab_size=len(WORDS), width=24, layers=2, heads=3, head_dim=8, mlp_width=40, context=48
)
PARAMS = encoder.random_params(CONFIG, jax.random.key(0))
LORA = LoraSettings(rank=2, targets=("attn/q", "mlp/down"))


def build(train="encoder", head=None, **changes):
  base = Encoder("tiny", CONFIG, PARAMS, None, "f" * 64)
  return ReRanker.build(base, head or HeadConfig(), train=train, lora=LORA, **changes)


def batches(seed=0, units=1):
  texts = pair_encoder()
  return GroupBatches(groups(), PASSAGES.__getitem__, texts, 8, GroupOptions(3), seed, units=units)


def trained(method, steps=3):
  """The trained and the frozen tree after some steps, and the losses."""
  mesh = make_mesh(1, 1, 1)
  optimizer = make_optimizer(TrainSettings(steps=steps, warmup_steps=0), 3e-3)
  state = create_state(method.init(jax.random.key(1)), optimizer, jax.random.key(2), mesh)
  step = make_train_step(method, optimizer, mesh=mesh)
  rows, losses = batches(), []
  frozen = method.frozen()
  for _ in range(steps):
    state, metrics = step(state, frozen, shard_batch(next(rows), mesh))
    losses.append(float(metrics["loss"]))
  return state.trainable, frozen, losses


def bits(tree):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("train", re_ranker.TRAINED)
def test_what_is_trained_changes_and_the_frozen_encoder_does_not(train):
  method, before = build(train), bits(PARAMS)
  start = method.init(jax.random.key(1))
  tree, frozen, losses = trained(method)
  assert bits(PARAMS) == before and all(np.isfinite(losses))
  assert tree.keys() == {"head", *({train} - {"head"})}
  if train != "encoder":
    assert bits(frozen["encoder"]) == before
    weights = method.weights(tree, frozen)
    moved = weights["layers"]["attn"]["q"]["kernel"] != PARAMS["layers"]["attn"]["q"]["kernel"]
    assert bool(moved.any()) == (train == "lora")
    same = weights["layers"]["attn"]["k"]["kernel"] == PARAMS["layers"]["attn"]["k"]["kernel"]
    assert bool(same.all())
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), tree, start)
  unchanged = [
    jax.tree_util.keystr(path) for path, moved in jax.tree.leaves_with_path(changed) if not moved
  ]
  assert unchanged == []


def test_lora_starts_from_the_unmodified_encoder():
  plain, updated = build("head"), build("lora")
  batch, tree = next(batches()), updated.init(jax.random.key(1))
  expected = plain.scores(plain.network({"head": tree["head"]}, plain.frozen()), batch)
  result = updated.scores(updated.network(tree, updated.frozen()), batch)
  np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_padding_and_other_texts_change_nothing(pooling):
  method = build(head=HeadConfig(pooling=pooling))
  tree, texts = method.init(jax.random.key(1)), pair_encoder()
  encoded = texts(pairs(4))
  scores, network = jax.jit(method.scores), method.network(tree, {})
  alone = [scores(network, pad_pairs([text], (len(text.tokens),))) for text in encoded]
  wide = scores(network, pad_pairs(encoded, (40,), 9))
  assert wide.shape == (9, 1) and np.isfinite(wide).all()
  np.testing.assert_allclose(wide[:4], np.concatenate(alone), atol=1e-5)


@pytest.mark.parametrize("train", re_ranker.TRAINED)
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_texts_that_share_rows_give_the_loss_and_the_gradient_of_texts_alone(train, pooling):
  method = build(train, head=HeadConfig(pooling=pooling, dropout=0.0))
  tree, frozen, packed = method.init(jax.random.key(1)), method.frozen(), next(batches())
  assert packed["mask"].any(-1).sum(-1).max() > 1  # texts do share rows
  questions = unpacked(packed)
  own = [Pair(text, [0, *[1] * (len(text) - 1)], False) for row in questions for text in row]
  alone = {n: a[None] for n, a in pad_pairs(own, (40,)).items()}
  alone["text_index"] = np.arange(len(own), dtype=np.int32).reshape(1, len(questions), -1)
  # of each text the first token is of one type, the others of the other
  begins = packed["mask"] > np.pad(packed["mask"], ((0, 0),) * 3 + ((1, 0),))[..., :-1]
  packed["types"] = ((packed["mask"] > 0) & ~begins).sum(axis=2).astype(np.int32)
  run = jax.jit(jax.value_and_grad(lambda tree, batch: method.loss(tree, frozen, batch, None)[0]))
  (loss, grads), (expected, theirs) = run(tree, packed), run(tree, alone)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, theirs)


def test_texts_without_tokens_do_not_count():
  method, batch = build(), next(batches(units=8))
  tree = method.init(jax.random.key(1))
  few = {name: value[:5].copy() for name, value in batch.items()}
  few["text_index"][..., 3] = -1  # a passage less for each
  filled = {name: np.zeros_like(value) for name, value in batch.items()}
  filled["text_index"] -= 1
  for name, value in few.items():
    filled[name][:5] = value
  for encoded in (few, filled):  # what no question names does not count
    for unit, text_index in zip(encoded["mask"], encoded["text_index"], strict=True):
      kept = np.isin(np.arange(unit.shape[0] * unit.shape[1]), text_index).reshape(unit.shape[:2])
      unit *= kept[..., None]
  loss_of = jax.jit(lambda tree, batch: method.loss(tree, {}, batch, None))
  expected, sums = loss_of(tree, few | {"text_index": few["text_index"][..., :3]})
  for encoded in (few, filled):
    loss, metrics = loss_of(tree, encoded)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert {n: int(v) for n, v in metrics.items()} == {n: int(v) for n, v in sums.items()}
  assert int(sums["targets"]) == int(sums["rows"]) == 5
  nothing = {name: np.zeros_like(value) for name, value in batch.items()}
  nothing["text_index"] -= 1
  grads = jax.jit(jax.grad(lambda tree: loss_of(tree, nothing)[0]))(tree)
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_dropout_needs_a_key():
  method, batch = build(head=HeadConfig(dropout=0.5, input_dropout=True)), next(batches())
  tree = method.init(jax.random.key(1))
  one, again, other = (
    method.loss(tree, {}, batch, key)[0]
    for key in (jax.random.key(0), jax.random.key(0), jax.random.key(1))
  )
  assert one == again != other
  bare = dataclasses.replace(method, head=HeadConfig(dropout=0.0, input_dropout=True))
  assert method.loss(tree, {}, batch, None)[0] == bare.loss(tree, {}, batch, jax.random.key(0))[0]


def test_eight_devices_and_microbatches_give_the_gradient_of_one():
  method, rows = build(head=HeadConfig(dropout=0.0)), next(batches(units=8))
  tree = method.init(jax.random.key(1))
  grads = jax.jit(gradients, static_argnums=(0, 5))
  loss, sums, one = grads(method, tree, {}, rows, jax.random.key(0), 1)
  split = shard_batch(rows, make_mesh(4, 2, 1))
  for batch, parts in ((split, 1), (rows, 2)):
    other, others, result = grads(method, tree, {}, batch, jax.random.key(0), parts)
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    assert jax.tree.map(int, others) == jax.tree.map(int, sums)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), result, one)


def test_bfloat16_is_close_and_trains_float32():
  method, batch = build(dtype="bfloat16", head=HeadConfig(dropout=0.0)), next(batches())
  tree = method.init(jax.random.key(1))
  wide = build(head=HeadConfig(dropout=0.0))
  close = (one.scores(one.network(tree, {}), batch) for one in (method, wide))
  np.testing.assert_allclose(*close, atol=0.02)
  grads = jax.grad(lambda tree: method.loss(tree, {}, batch, None)[0])(tree)
  assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def passage_text(number):
  """A passage; those of even numbers can be told by their text."""
  return f"w{number} {'has' if number % 2 else 'is'} w{(3 * number) % 40}"


def fitted(workdir, steps=20):
  """A stage in which even passages answer every question."""
  method, mesh = build(), make_mesh(2, 1, 1)
  texts = pair_encoder()
  rows = [Group(f"what w{i}", (i // 2 * 2,), (1, 3, 5, 7, 9)) for i in range(40)]

  def validate(tree):
    return teacher_forced_scores(
      functools.partial(batch_loss, method, tree, {}),
      validation_batches(rows[:10], passage_text, texts, 4, 3, 2),
      functools.partial(shard_batch, mesh=mesh),
    )

  return fit(
    method,
    make_optimizer(TrainSettings(steps=20, warmup_steps=0), 0.01),
    method.init(jax.random.key(1)),
    method.frozen(),
    GroupBatches(rows, passage_text, texts, 8, GroupOptions(3), units=2),
    TrainSettings(steps=steps, validate_every=steps, checkpoint_every=steps),
    StageRun("re_ranker", workdir, mesh, MetricsWriter(workdir), {}, "f" * 64),
    jax.random.key(7),
    validate=validate,
    validate_first=True,
  )


def test_the_loop_trains_it_unchanged(tmp_path):
  whole = fitted(tmp_path / "whole")
  first, last = whole.validation[0], whole.validation[-1]
  assert last["loss"] < 0.7 * first["loss"] and last["accuracy"] > first["accuracy"]
  assert whole.tokens > 0


def test_a_resumed_stage_equals_an_uninterrupted_one(tmp_path, monkeypatch):
  whole = fitted(tmp_path / "whole", steps=6)
  calls = []

  def reached(self):
    calls.append(1)
    return len(calls) == 3

  monkeypatch.setattr(StopRequest, "reached", reached)
  with pytest.raises(Interrupted):
    fitted(tmp_path / "parts", steps=6)
  again = fitted(tmp_path / "parts", steps=6)
  assert again.steps == 6 and bits(again.last) == bits(whole.last)


def test_scores_of_many_pairs_come_in_their_order_and_in_few_shapes():
  method, texts, encoded = build(), pair_encoder(), pairs(50)
  tree = method.init(jax.random.key(1))
  network = method.network(tree, {})
  alone = jax.jit(method.scores)(network, pad_pairs(texts(encoded), (40,)))[:, 0]
  result = score_pairs(method, tree, {}, texts, encoded, max_tokens=200, progress=False)
  np.testing.assert_allclose(result, alone, atol=1e-5)
  split = make_mesh(4, 2, 1)
  result = score_pairs(method, tree, {}, texts, encoded, split, max_tokens=200, progress=False)
  np.testing.assert_allclose(result, alone, atol=1e-5)
  assert score_pairs(method, tree, {}, texts, [], progress=False).shape == (0,)


def test_what_is_no_encoder_or_cannot_be_trained():
  decoder = types.SimpleNamespace(name="smollm2", config=object(), params={})
  with pytest.raises(UserError, match="smollm2 is no text encoder"):
    ReRanker.build(decoder, HeadConfig())
  with pytest.raises(UserError, match="trains one of encoder, lora, head"):
    build("everything")
  with pytest.raises(UserError, match="dtype is 'int8'"):
    build(dtype="int8")
  base = Encoder("tiny", CONFIG, PARAMS, None, "f" * 64)
  with pytest.raises(UserError, match="names mlp/gate; this encoder has attn/k"):
    ReRanker.build(base, HeadConfig(), train="lora", lora=LoraSettings(targets=("mlp/gate",)))
  with pytest.raises(UserError, match="lora.rank is 0"):
    ReRanker.build(base, HeadConfig(), train="lora", lora=dataclasses.replace(LORA, rank=0))
  for wrong in ({"pooling": "last"}, {"activation": "sine"}, {"dropout": 1.0}):
    with pytest.raises(ValueError, match="a head's"):
      HeadConfig(**wrong)
