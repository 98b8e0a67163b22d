"""Teacher-forced scores: weighted by targets and rows, whatever the batches."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.data.collate import collate
from frozen_jax.data.tasks import Encoded
from frozen_jax.evaluation.teacher_forced import teacher_forced, teacher_forced_scores
from frozen_jax.methods.zero_shot import ZeroShot
from frozen_jax.models.tuned_model import TunedModel
from tests.evaluation.tiny import tiny_lm

CONFIG = DecoderConfig(
  vocab_size=31, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=24, tied=True
)
PARAMS = decoder.random_params(CONFIG, jax.random.key(0))
MODEL = TunedModel(tiny_lm(PARAMS, CONFIG), ZeroShot(CONFIG))
ROWS = [
  Encoded([3, 7, 1, 9], 2),
  Encoded([5, 5, 5, 5, 5, 5, 5], 1),
  Encoded([2, 30, 4], 2),
  Encoded([8, 1, 2, 3, 4], 3),
  Encoded([11, 12], 1),
]


def shard_batch(batch):
  return {name: jnp.asarray(value) for name, value in batch.items()}


def batches(*sizes):
  start = 0
  for size in sizes:
    chosen = ROWS[start : start + size]
    yield collate(chosen, (8, 16), 4, max(sizes))  # rows beyond the given ones are empty
    start += size


@pytest.fixture(scope="module")
def by_hand():
  """(negative log-likelihoods of each row's targets, percent of rows with every target right)."""
  losses, right = [], []
  for tokens, start, *_ in ROWS:
    ids = jnp.asarray([tokens])
    hidden = decoder.hidden(PARAMS, CONFIG, decoder.embed(PARAMS, CONFIG, ids))
    logits = decoder.logits(PARAMS, CONFIG, hidden)[0]
    likelihood = jax.nn.log_softmax(logits)
    at = range(start, len(tokens))
    losses.append([-float(likelihood[i - 1, tokens[i]]) for i in at])
    right.append(all(int(logits[i - 1].argmax()) == tokens[i] for i in at))
  return losses, 100 * np.mean(right)


@pytest.mark.parametrize("sizes", [(5,), (2, 3), (3, 1, 1)])
def test_loss_perplexity_and_accuracy(by_hand, sizes):
  scores = teacher_forced_scores(MODEL.loss, batches(*sizes), shard_batch)
  rows, accuracy = by_hand
  loss = np.mean(sum(rows, []))
  assert scores["loss"] == pytest.approx(loss, rel=1e-5)
  assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
  assert scores["accuracy"] == accuracy


@pytest.mark.parametrize("sizes", [(5,), (2, 3), (3, 1, 1)])
def test_the_loss_of_each_row(by_hand, sizes):
  found = teacher_forced(MODEL.loss, batches(*sizes), shard_batch)
  assert found.scores == teacher_forced_scores(MODEL.loss, batches(*sizes), shard_batch)
  real = found.row_targets > 0
  assert found.row_targets[real].tolist() == [len(row) for row in by_hand[0]]
  assert found.row_losses[real] == pytest.approx([sum(row) for row in by_hand[0]], rel=1e-5)
  assert not found.row_losses[~real].any() and len(real) == len(sizes) * max(sizes)


def test_a_row_whose_every_target_is_the_best_counts():
  """A continuation that the model itself chose is right, and wrong with one token changed."""
  ids = [3, 7]
  for _ in range(3):
    hidden = decoder.hidden(PARAMS, CONFIG, decoder.embed(PARAMS, CONFIG, jnp.asarray([ids])))
    ids.append(int(decoder.logits(PARAMS, CONFIG, hidden)[0, -1].argmax()))
  changed = [*ids[:3], (ids[3] + 1) % 31, ids[4]]
  batch = collate([Encoded(ids, 2), Encoded(changed, 2)], (8,), 4)
  assert teacher_forced_scores(MODEL.loss, [batch], shard_batch)["accuracy"] == 50.0


def test_a_loss_that_is_no_number_stays_one():
  poisoned = jax.tree.map(lambda a: a * jnp.nan, PARAMS)
  model = TunedModel(tiny_lm(poisoned, CONFIG), MODEL.method)
  scores = teacher_forced_scores(model.loss, batches(5), shard_batch)
  assert math.isnan(scores["loss"]) and math.isnan(scores["perplexity"])
