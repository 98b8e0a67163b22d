"""Trains a tiny method for some steps on a mesh of all devices, and prints the losses.

python -m tests.training.sharded_program data=2,fsdp=2,tensor=2 METHOD...
"""

import sys

import jax
import numpy as np

from frozen_jax.backbones import decoder, encoder
from frozen_jax.core.paths import flatten, unflatten
from frozen_jax.methods import METHODS
from frozen_jax.methods.re_ranker import ReRanker
from frozen_jax.methods.recursion_settings import RecursionSettings
from frozen_jax.modules.score_head import HeadConfig
from frozen_jax.modules.settings import PromptSettings
from frozen_jax.sharding import hosts
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.sharding.rules import shardings
from frozen_jax.tools.arguments import parse_mesh
from frozen_jax.training.optimizer import make_optimizer
from frozen_jax.training.settings import TrainSettings
from frozen_jax.training.state import create_state
from frozen_jax.training.step import make_train_step

ROWS, LENGTH, TARGETS, STEPS = 8, 12, 4, 4
PROMPT = PromptSettings(length=5, text="")


RE_RANKER = "re_ranker"
PASSAGES = 3  # of a question; each is a row of its own


def build(name, base):
  """The method, or the reader's re-ranker, all of which is trained."""
  if name == RE_RANKER:
    return ReRanker.build(base.encoder, HeadConfig())
  kind = METHODS[name]
  sections = {key: section() for key, section in kind.sections.items()} | {"prompt": PROMPT}
  if name == "neural_recursion":
    sections["recursion"] = RecursionSettings(first_prompt="none")
  return kind.build(base, sections)


def batch(step, vocab_size, encoder_vocab_size):
  numbers = np.random.default_rng(step)
  ints = lambda high, *shape: numbers.integers(0, high, shape, dtype=np.int32)
  lengths = numbers.integers(6, LENGTH + 1, ROWS)
  positions = np.sort(ints(5, ROWS, TARGETS), axis=1)
  return {
    "tokens": ints(vocab_size, ROWS, LENGTH),
    "mask": (np.arange(LENGTH) < lengths[:, None]).astype(np.int32),
    "target_positions": positions,
    "target_ids": ints(vocab_size, ROWS, TARGETS),
    "target_mask": np.ones((ROWS, TARGETS), np.int32),
    "task": np.zeros(ROWS, np.int32),
    "encoder_tokens": ints(encoder_vocab_size, ROWS, LENGTH),
    "encoder_mask": np.ones((ROWS, LENGTH), np.int32),
  }


def pairs(step, vocab_size):
  """ROWS questions, each with its own passages, as `core.types.Pairs`."""
  numbers = np.random.default_rng(step)
  shape = (ROWS, PASSAGES, LENGTH)
  real = np.arange(LENGTH) < numbers.integers(6, LENGTH + 1, (ROWS, PASSAGES, 1))
  index = np.tile(np.arange(PASSAGES, dtype=np.int32), (ROWS, 1, 1))
  return {
    "tokens": numbers.integers(0, vocab_size, shape, dtype=np.int32),
    "types": np.zeros(shape, np.int32),
    "mask": real[:, :, None].astype(np.int32),
    "text_index": index,
  }


def sharded(params, axes, mesh):
  places = flatten(shardings(params, axes, mesh))
  put = {
    path: hosts.global_device_put(leaf, places[path]) for path, leaf in flatten(params).items()
  }
  return unflatten(put)


def main(sizes, *names):
  hosts.start(wait=60)
  from tests.methods import tiny  # makes arrays, and so comes after the start

  mesh = make_mesh(**parse_mesh(sizes))
  frozen = {
    "lm": sharded(tiny.PARAMS, decoder.PARAM_AXES, mesh),
    "encoder": sharded(tiny.ENCODER_PARAMS, encoder.PARAM_AXES, mesh),
    "frozen_inputs": {},
  }
  index, count = hosts.host_shard(mesh)
  part = slice(index * ROWS // count, (index + 1) * ROWS // count)
  for name in names:
    method = build(name, tiny.base())
    optimizer = make_optimizer(TrainSettings(steps=STEPS, warmup_steps=0), 1e-2, method.no_decay)
    key, ranks = jax.random.key(1), name == RE_RANKER
    start = method.init(key) if ranks else method.init(tiny.base(), key)
    state = create_state(start, optimizer, jax.random.key(2), mesh)
    step = make_train_step(method, optimizer, mesh=mesh)
    for number in range(STEPS):
      ids = tiny.CONFIG.vocab_size, tiny.ENCODER.vocab_size
      whole = pairs(number, ids[1]) if ranks else batch(number, *ids)
      rows = {key: value[part] for key, value in whole.items()}
      state, metrics = step(state, {} if ranks else frozen, hosts.global_batch(rows, mesh))
      if hosts.is_first_host():
        print(name, float(metrics["loss"]), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
