"""What comes out of the store is what the encoder gives, and each text is encoded once."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from frozen_jax.backbones import encoder
from frozen_jax.backbones.load_encoder import load_encoder
from frozen_jax.data.batches import training_batches
from frozen_jax.data.encoded_batches import EncodedBatches, TextStates
from frozen_jax.data.feature_store import FeatureStore
from frozen_jax.data.tasks import QuestionTask
from tests.backbones import encoder_cases

pytestmark = pytest.mark.program

WIDTH, ROWS = 3, 4


class Fake:
  """States that tell which token stands where; counts what it is asked for."""

  def __init__(self, dtype=np.float32):
    self.dtype, self.shapes, self.texts = dtype, [], []

  def __call__(self, tokens, mask):
    assert tokens.dtype == mask.dtype == np.int32
    self.shapes.append(tokens.shape)
    self.texts += [
      tuple(row[real > 0]) for row, real in zip(tokens, mask, strict=True) if real.any()
    ]
    place = np.arange(tokens.shape[1])
    states = np.stack([tokens, np.broadcast_to(place, tokens.shape), mask], -1)
    return np.where(mask[..., None] > 0, states, 99).astype(self.dtype)


def padded(texts, width=16):
  tokens, mask = np.zeros((2, len(texts), width), np.int32)
  for row, text in enumerate(texts):
    tokens[row, : len(text)], mask[row, : len(text)] = text, 1
  return {"encoder_tokens": tokens, "encoder_mask": mask}


@pytest.fixture
def store(tmp_path):
  return FeatureStore(tmp_path / "store", WIDTH, np.float32)


@pytest.fixture
def fake():
  return Fake()


@pytest.fixture
def states(store, fake):
  return TextStates(store, fake, ROWS)


def test_states_take_the_place_of_tokens(states):
  batch = padded([[5, 6], [7], []]) | {"tokens": np.ones((3, 2), np.int32)}
  made = states(batch)
  assert made.keys() == {"tokens", "encoder_mask", "encoder_states", "encoder_cached"}
  assert made["encoder_states"].shape == (3, 16, WIDTH)
  assert made["encoder_states"][0, :3].tolist() == [[5, 0, 1], [6, 1, 1], [0, 0, 0]]
  assert made["encoder_states"][1, :2].tolist() == [[7, 0, 1], [0, 0, 0]]
  assert not made["encoder_states"][2].any() and not made["encoder_states"][:, 2:].any()
  assert batch.keys() == {"tokens", "encoder_tokens", "encoder_mask"}


def test_each_text_is_encoded_once(states, fake):
  first = states(padded([[5, 6], [7], [5, 6], []]))
  assert first["encoder_cached"].tolist() == [0, 0, 0, 0]
  assert first["encoder_cached"].dtype == np.int32
  second = states(padded([[7], [8], [], [5, 6]]))
  assert second["encoder_cached"].tolist() == [1, 0, 0, 1]
  assert (states.hits, states.misses) == (2, 4)
  assert sorted(fake.texts) == [(5, 6), (7,), (8,)] and len(fake.shapes) == 2
  np.testing.assert_array_equal(second["encoder_states"][3], first["encoder_states"][0])
  np.testing.assert_array_equal(first["encoder_states"][2], first["encoder_states"][0])


def test_few_shapes(states, fake):
  rng = np.random.default_rng(0)
  for _ in range(20):
    lengths = rng.integers(1, 60, rng.integers(1, 9))
    states(padded([rng.integers(1, 999, length) for length in lengths], 64))
  assert set(fake.shapes) == {(ROWS, width) for width in (16, 32, 64)}


def test_padding_on_the_left_is_one_text_with_padding_on_the_right(states, fake):
  right = padded([[5, 6, 7]])
  left = {name: value[:, ::-1].copy() for name, value in padded([[7, 6, 5]]).items()}
  made = states(left)["encoder_states"]
  assert made[0, -3:, 0].tolist() == [5, 6, 7] and not made[0, :-3].any()
  assert states(right)["encoder_cached"].tolist() == [1] and len(fake.shapes) == 1


def test_a_batch_without_a_text_has_zeros(states, fake):
  made = states(padded([[], []]))
  assert made["encoder_states"].shape == (2, 16, WIDTH) and not made["encoder_states"].any()
  assert fake.shapes == [] and (states.hits, states.misses) == (0, 0)


def test_a_batch_without_encoder_tokens_stays_as_it_is(states):
  batch = {"tokens": np.ones((2, 2), np.int32)}
  assert states(batch) == batch


def test_another_process_finds_what_was_flushed(states, tmp_path):
  batch = padded([[5, 6], [7]])
  made = states(batch)
  states.flush()
  again = TextStates(FeatureStore(tmp_path / "store", WIDTH, np.float32), None)(batch)
  np.testing.assert_array_equal(again["encoder_states"], made["encoder_states"])
  assert again["encoder_cached"].all()


def test_a_narrow_type_stays_narrow(tmp_path):
  store = FeatureStore(tmp_path, WIDTH, ml_dtypes.bfloat16)
  states = TextStates(store, Fake(ml_dtypes.bfloat16))
  for _ in range(2):
    made = states(padded([[5, 6]]))["encoder_states"]
    assert made.dtype == ml_dtypes.bfloat16 and made[0, 1].tolist() == [6, 1, 1]


def test_the_position_is_that_of_the_batches(words, states, tmp_path):
  def batches():
    rows = [{"question": f"{n} " * (1 + n % 5), "answers": ["red"], "id": ""} for n in range(10)]
    return WithTexts(training_batches(rows, QuestionTask(words, lengths=(8, 16)), 4, seed=1))

  plain = batches()
  expected = [next(plain) for _ in range(9)]
  first = EncodedBatches(batches(), states)
  for number in range(3):
    check(next(first), expected[number])
  position = json.loads(json.dumps(first.get_state()))
  assert list((tmp_path / "store").glob("*.array_record"))  # what a checkpoint has seen is kept
  next(first)
  other = TextStates(FeatureStore(tmp_path / "store", WIDTH, np.float32), Fake())
  second = EncodedBatches(batches(), other)
  second.set_state(position)
  assert dict(second.counts) == {"skipped": 0, "truncated": 0}
  for number in range(3, 9):
    check(next(second), expected[number])
  assert other.hits


def check(made, plain):
  assert all((made[name] == plain[name]).all() for name in ("tokens", "mask", "encoder_mask"))
  assert (made["encoder_states"][..., 0] == plain["encoder_tokens"]).all()


class WithTexts:
  """Batches whose encoder reads what the model reads."""

  def __init__(self, batches):
    self.batches = batches
    self.get_state, self.set_state = batches.get_state, batches.set_state

  @property
  def counts(self):
    return self.batches.counts

  def __next__(self):
    batch = next(self.batches)
    return batch | {"encoder_tokens": batch["tokens"], "encoder_mask": batch["mask"]}


@pytest.mark.parametrize(
  "kind, dtype",
  [
    *((kind, "float32") for kind in ("bert", "t5", "roberta", "modernbert")),
    ("bert", "bfloat16"),
  ],
)
def test_states_are_those_of_the_encoder_whatever_stands_beside(tmp_path, kind, dtype):
  encoder_cases.make(kind).save_pretrained(tmp_path)
  loaded = load_encoder(str(tmp_path), dtype, progress=False)

  @jax.jit
  def encode(tokens, mask):
    embedded = encoder.embed(loaded.params, loaded.config, tokens)
    return encoder.hidden(loaded.params, loaded.config, embedded, mask)

  rng = np.random.default_rng(0)
  texts = [rng.integers(5, 60, length) for length in (1, 3, 4, 5, 8, 9, 16, 17, 23)]
  found = []
  for turn, order in enumerate([range(9), [8, 0], [5], [3, 4, 5, 6, 7, 2, 1, 0, 8]]):
    store = FeatureStore(tmp_path / f"{turn}", loaded.config.width, dtype)
    batch = padded([texts[index] for index in order], 23)
    states = TextStates(store, encode, ROWS, max_width=loaded.config.max_tokens)
    made = states(batch)["encoder_states"]
    found.append(dict(zip(order, made, strict=True)))
    direct = np.asarray(encode(batch["encoder_tokens"], batch["encoder_mask"]), np.float32)
    tolerance = {"float32": 2e-5, "bfloat16": 0.1}[dtype]
    for index, row in enumerate(direct):
      real = batch["encoder_mask"][index] > 0
      np.testing.assert_allclose(
        made[index][real].astype(np.float32), row[real], atol=tolerance * np.abs(direct).max()
      )
  for other in found[1:]:
    for index, row in other.items():
      np.testing.assert_array_equal(row, found[0][index])  # bit by bit
