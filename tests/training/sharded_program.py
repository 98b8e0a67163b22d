"""Trains a tiny method for some steps on a mesh of all devices, and prints the losses.

python -m tests.training.sharded_program METHOD data=2,fsdp=2,tensor=2
"""

import sys

import jax
import numpy as np

from frozen_jax.backbones import decoder, encoder
from frozen_jax.core.paths import flatten, unflatten
from frozen_jax.methods import METHODS
from frozen_jax.methods.neural_recursion import RecursionSettings
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


def build(name, base):
  """The method, and the parts of its trained tree by their rates."""
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
    start = method.init(tiny.base(), jax.random.key(1))
    state = create_state(start, optimizer, jax.random.key(2), mesh)
    step = make_train_step(method, optimizer, mesh=mesh)
    for number in range(STEPS):
      whole = batch(number, tiny.CONFIG.vocab_size, tiny.ENCODER.vocab_size)
      rows = {key: value[part] for key, value in whole.items()}
      state, metrics = step(state, frozen, hosts.global_batch(rows, mesh))
      if hosts.is_first_host():
        print(name, float(metrics["loss"]), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
