"""Our side of `training_step`: `python -m benchmarks.ours DTYPE WORK`."""

import functools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import work, worker
from frozen_jax.backbones.load import load_decoder
from frozen_jax.core.host_memory import keep_freed_memory, wait_for_each_program
from frozen_jax.data.tasks import Encoded
from frozen_jax.data.unpadding import Unpadding
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.modules.settings import PromptSettings
from frozen_jax.modules.soft_prompt import prompt_params
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.training.optimizer import make_optimizer
from frozen_jax.training.settings import TrainSettings
from frozen_jax.training.state import create_state
from frozen_jax.training.step import make_train_step


def main() -> None:
  keep_freed_memory()  # as the command does
  wait_for_each_program()
  dtype, name = sys.argv[1:]
  lm = load_decoder(work.MODEL, dtype, progress=False)
  todo = work.make(lm.config.vocab_size, lm.config.width, name)
  positions = todo.lengths[:, None] - 1 - todo.targets + np.arange(todo.targets)
  ids = np.take_along_axis(todo.tokens, positions + 1, axis=1)
  batch = {
    "tokens": todo.tokens,
    "mask": todo.mask,
    "target_positions": positions,
    "target_ids": ids,
    "target_mask": np.ones_like(ids),
  }
  rows = [
    Encoded(row[:length].tolist(), int(length) - todo.targets)
    for row, length in zip(todo.tokens, todo.lengths, strict=True)
  ]
  batch = Unpadding(rows, [todo.tokens.shape[1]], todo.targets, len(rows))(batch)
  batch = {name: jnp.asarray(a, jnp.int32) for name, a in batch.items()}

  method = PromptTuning(lm.config, PromptSettings(length=work.PROMPT))
  start = {"prompt": prompt_params(jnp.asarray(todo.prompt))}
  constant = {"warmup_steps": 0, "final_fraction": 1.0, "weight_decay": 0.0, "clip_norm": 0.0}
  optimizer = make_optimizer(TrainSettings(steps=1000, **constant), work.LEARNING_RATE)
  key = jax.random.key(0)
  state = create_state(start, optimizer, key, make_mesh())
  train_step = make_train_step(method, optimizer)
  frozen = {"lm": lm.params, "frozen_inputs": {}}

  def step() -> float:
    nonlocal state
    state, metrics = train_step(state, frozen, batch)
    jax.block_until_ready(state)
    return float(metrics["loss"])

  worker.serve(step, functools.partial(matrix_seconds, dtype))


def matrix_seconds(dtype: str, width: int) -> float:
  """How long one product of two square matrices takes."""
  a = jnp.ones((width, width), dtype)
  _product(a, a).block_until_ready()
  start = time.perf_counter()
  _product(a, a).block_until_ready()
  return time.perf_counter() - start


@jax.jit
def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  return jax.lax.dot(a, b, preferred_element_type=jnp.float32)


if __name__ == "__main__":
  main()
