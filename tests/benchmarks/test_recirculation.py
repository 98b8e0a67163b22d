"""The map of second passes without training: each figure is the method's own loss."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import recirculation
from benchmarks.recirculation import Point
from frozen_jax.methods.layer_passes import LayerPasses
from frozen_jax.methods.recirculation import Looped, Mix, Recirculation
from frozen_jax.methods.serial_passes import SerialPasses
from frozen_jax.methods.zero_shot import ZeroShot
from tests.methods.tiny import CONFIG, PARAMS

pytestmark = pytest.mark.program

METHODS = {"recirculation": (Recirculation, True), "looped": (Looped, False)}
POINTS = [
  Point(name, write, read, share)
  for name in METHODS
  for write, read in ((0, 2), (1, 2))
  for share in (0.1, 0.4)
]
TOKENS = np.random.default_rng(0).integers(3, CONFIG.vocab_size, (3, 12)).astype(np.int32)


def method_of(point):
  kind, matched = METHODS[point.method]
  return kind(LayerPasses(CONFIG, point.write, point.read), Mix(point.share, matched=matched))


@functools.partial(jax.jit, static_argnums=0)
def loss_of(method, row):
  at = jnp.arange(len(row) - 1)[None]
  batch = {"tokens": row[None], "mask": jnp.ones_like(row)[None], "target_positions": at}
  batch |= {"target_ids": row[None, 1:], "target_mask": jnp.ones_like(at)}
  return method.loss({}, {"lm": PARAMS, "frozen_inputs": {}}, batch, None)[0]


def test_each_figure_is_the_loss_of_the_method(monkeypatch):
  monkeypatch.setattr(recirculation, "ROWS", 2)  # the last batch is not full
  loaded = types.SimpleNamespace(params=PARAMS, config=CONFIG)
  found = recirculation.losses(loaded, TOKENS, POINTS)
  methods = [ZeroShot(CONFIG), *map(method_of, POINTS)]
  expected = [[loss_of(method, row) for row in TOKENS] for method in methods]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_serial_form_is_read_too():
  loaded, point = types.SimpleNamespace(params=PARAMS, config=CONFIG), POINTS[2]
  layers = SerialPasses(CONFIG, point.write, point.read)
  method = Recirculation(layers, Mix(point.share, matched=True))
  found = recirculation.serial(loaded, TOKENS, point)
  np.testing.assert_allclose(found, [loss_of(method, row) for row in TOKENS], rtol=1e-5)


def test_the_best_point_of_each_method_and_its_change():
  grid = np.full((1 + len(POINTS), 4), 2.0)
  grid[3], grid[6] = 1.9, 2.1 - np.arange(4) / 10
  assert recirculation.best(grid, POINTS, "recirculation") == POINTS[2]
  assert recirculation.best(grid, POINTS, "looped") == POINTS[5]
  lm, row = recirculation.compared(grid[[0, 3]], [POINTS[2]])
  assert lm["perplexity"] == pytest.approx(np.exp(2))
  assert row["perplexity"] == pytest.approx(np.exp(1.9))
  assert [row[name] for name in ("change", "change_low", "change_high")] == pytest.approx(
    [100 * np.expm1(-0.1)] * 3
  )


class Numbers:
  """A text is a number, and the number is its only token."""

  bos_token_id, eos_token_id = 1, 2

  def __init__(self, begins):
    self.begins = begins

  def __call__(self, texts, **options):
    if texts == "":
      return {"input_ids": [self.bos_token_id] if self.begins else []}
    return {"input_ids": [[int(text)] for text in texts]}


@pytest.mark.parametrize("begins", [False, True])
def test_windows_of_either_half_begin_as_texts_do(tmp_path, begins):
  path = tmp_path / "texts.jsonl"
  path.write_text("".join(f'{{"text": "{10 + number}"}}\n' for number in range(41)))
  loaded = types.SimpleNamespace(
    tokenizer=Numbers(begins), config=types.SimpleNamespace(vocab_size=97)
  )
  length = 4 + begins  # two texts with their end tokens
  choosing, shown = recirculation.windows(loaded, str(path), 2, 5, length)
  first = lambda windows: windows[:, int(begins)].tolist()
  assert choosing.shape == (2, length) and first(choosing) == [10, 20]
  assert shown.shape == (5, length) and first(shown) == [30, 34, 38, 42, 46]
  assert not begins or (choosing[:, 0] == 1).all()
  with pytest.raises(SystemExit, match="ask for fewer"):
    recirculation.windows(loaded, str(path), 2, 11, length)
