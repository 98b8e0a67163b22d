"""A method small enough to train in milliseconds, and its data: shared by the tests of training.

Run as a program it trains one stage in a workdir, so that a test can kill it:
`python tests/training/toy.py WORKDIR [key=value ...]`.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from frozen_jax.core.errors import Interrupted
from frozen_jax.sharding import hosts, peers
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.sharding.rules import shardings
from frozen_jax.training.loop import StageRun, fit
from frozen_jax.training.metrics import MetricsWriter
from frozen_jax.training.optimizer import make_optimizer
from frozen_jax.training.settings import TrainSettings

V, D, P = 16, 8, 4  # vocabulary, width, prompt vectors
ROWS, TEXT = 8, 6
NO_DECAY = ("prompt/.*",)
PARAM_AXES = {"lm/embed/tokens": ("vocab", "embed"), "lm/head/kernel": ("embed", "vocab")}


def noise(key, shape):
  """Numbers in 0..1 that depend on the key; jax.random's take ten times as long to compile."""
  word = jax.random.key_data(key)[1] + jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
  word = (word ^ (word >> 15)) * jnp.uint32(0x2C1B3C6D)
  return ((word ^ (word >> 12)) >> 8).astype(jnp.float32) / 2**24


class Toy:
  """Predicts a token from the one before it, with a frozen embedding and a frozen head.

  As a `Method` is, it is a value: learners of one class with the same values are equal.
  """

  name = "toy"

  def __init__(self, dropout=0.1):
    self.dropout = dropout

  def __repr__(self):
    return f"{type(self).__name__}({vars(self)})"

  def __eq__(self, other):
    return type(self) is type(other) and repr(self) == repr(other)  # a NaN too is one value

  def __hash__(self):
    return hash(repr(self))

  def init(self, key):
    return {
      "connector": {"kernel": 0.3 * jax.random.normal(key, (D, D)), "bias": jnp.zeros((D,))},
      "prompt": {"vectors": 0.1 * jax.random.normal(key, (P, D))},
    }

  def loss(self, trainable, frozen, batch, key):
    x = frozen["lm"]["embed"]["tokens"][batch["tokens"]] + trainable["prompt"]["vectors"].mean(0)
    if key is not None and self.dropout:
      x = jnp.where(noise(key, x.shape) < self.dropout, 0, x)
    x = jnp.tanh(x @ trainable["connector"]["kernel"] + trainable["connector"]["bias"])
    x = jnp.take_along_axis(x, batch["target_positions"][..., None], axis=1)  # [B, M, D]
    scores = jax.nn.log_softmax(x @ frozen["lm"]["head"]["kernel"])
    mask = batch["target_mask"].astype(jnp.float32)
    loss = -jnp.take_along_axis(scores, batch["target_ids"][..., None], axis=-1)[..., 0] * mask
    right = (scores.argmax(-1) == batch["target_ids"]) | (mask == 0)
    real = mask.any(-1)
    sums = {
      "targets": mask.sum().astype(jnp.int32),
      "tokens": batch["mask"].sum(),
      "rows": real.sum(),
      "correct": (right.all(-1) & real).sum(),
    }
    return loss.sum() / jnp.maximum(mask.sum(), 1.0), sums


class Exploding(Toy):
  """Its loss, or only its gradient, is no number in some steps (known by the key).

  where: "loss" or "gradient"; a number: what the loss is multiplied by.
  """

  def __init__(self, steps, where="loss"):
    super().__init__()
    self.steps, self.where = steps, where

  def loss(self, trainable, frozen, batch, key):
    loss, sums = super().loss(trainable, frozen, batch, key)
    if key is None:  # of a validation
      return loss, sums
    keys = [jax.random.fold_in(jax.random.key(7), step - 1) for step in self.steps]
    keys = jnp.stack([jax.random.key_data(k) for k in keys])
    bad = (jax.random.key_data(key) == keys).all(-1).any()
    if self.where == "gradient":
      zero = jnp.where(bad, 0.0, 1.0) * (trainable["connector"]["bias"] ** 2).sum()
      return loss + 0 * jnp.sqrt(jnp.where(bad, zero, 1.0)), sums
    return jnp.where(bad, jnp.nan if self.where == "loss" else self.where, 1.0) * loss, sums


class Spoilt(Toy):
  """Its loss is no number, or `times` as large, in batches that are marked `bad`."""

  def __init__(self, times=math.nan):
    super().__init__()
    self.times = times

  def loss(self, trainable, frozen, batch, key):
    loss, sums = super().loss(trainable, frozen, batch, key)
    bad = batch["bad"].any() if "bad" in batch else False
    return jnp.where(bad, self.times, 1.0) * loss, sums


@functools.cache
def frozen_tree(seed=1):
  embed, head = jax.random.split(jax.random.key(seed))
  lm = {
    "embed": {"tokens": jax.random.normal(embed, (V, D))},
    "head": {"kernel": jax.random.normal(head, (D, V))},
  }
  return {"lm": lm, "frozen_inputs": {}}


def place(frozen, mesh):
  """The frozen tree split over the mesh by the project's rules."""
  lm = shardings({"lm": frozen["lm"]}, PARAM_AXES, mesh)["lm"]
  return {"lm": hosts.global_device_put(frozen["lm"], lm), "frozen_inputs": {}}


def batch(index, rows=ROWS, seed=0):
  """Batch number `index`: rows of 6 or 8 tokens, of which 1 to 3 have a target."""
  draw = np.random.default_rng((seed, index))
  text = TEXT + 2 * int(draw.integers(2))
  tokens = draw.integers(0, V, (rows, text), dtype=np.int32)
  positions = np.sort(draw.permuted(np.tile(np.arange(text - 1), (rows, 1)), axis=1)[:, :3])
  return {
    "tokens": tokens,
    "mask": np.ones_like(tokens),
    "target_positions": positions.astype(np.int32),
    "target_ids": (3 * np.take_along_axis(tokens, positions, 1) + 1) % V,
    "target_mask": (np.arange(3) < draw.integers(1, 4, (rows, 1))).astype(np.int32),
  }


class Batches:
  """This host's rows of the batches 0, 1, 2, ...; the position is how many were taken."""

  def __init__(self, shard=(0, 1), rows=ROWS, seed=0, pause=0.0):
    self.taken, self.shard, self.rows, self.seed, self.pause = 0, shard, rows, seed, pause

  def __next__(self):
    time.sleep(self.pause)
    whole = batch(self.taken, self.rows, self.seed)
    self.taken += 1
    index, count = self.shard
    size = self.rows // count
    return {name: value[index * size : (index + 1) * size] for name, value in whole.items()}

  def get_state(self):
    return json.dumps({"taken": self.taken}).encode()  # bytes, as Grain's is

  def set_state(self, state):
    self.taken = json.loads(state)["taken"]


class MarkedBatches(Batches):
  """The same with a mark in the batches `bad`, and without those of `left_out`."""

  def __init__(self, bad=(), left_out=(), **more):
    super().__init__(**more)
    self.bad, self.left_out = set(bad), set(left_out)

  def __next__(self):
    while self.taken in self.left_out:
      self.taken += 1
    bad = self.taken in self.bad
    rows = super().__next__()
    return rows | {"bad": np.full(len(rows["tokens"]), bad, np.int32)}


@functools.cache
def _validation_loss(method):
  return jax.jit(lambda trainable, frozen, whole: method.loss(trainable, frozen, whole, None)[0])


def validation(method, frozen, mesh, pause=0.0):
  """The validate function of `fit`, on one fixed batch without dropout."""
  index, count = hosts.host_shard(mesh)
  size = ROWS // count
  rows = {k: v[index * size : (index + 1) * size] for k, v in batch(10_000).items()}
  whole = hosts.global_batch(rows, mesh)
  loss = _validation_loss(method)

  def validate(trainable):
    time.sleep(pause)
    return {"loss": float(loss(trainable, frozen, whole))}

  return validate


def train(workdir, steps=12, mesh=None, batches=None, method=None, validate=True, **changes):
  """Runs `fit` on the toy; `changes` go to the call, its run, its settings or the optimizer."""
  mesh = mesh or make_mesh()
  method = method or Toy()
  frozen = place(frozen_tree(), mesh)

  def take(names, defaults):
    return defaults | {name: changes.pop(name) for name in names if name in changes}

  learning_rate = changes.pop("learning_rate", 0.02)
  settings = TrainSettings(
    **take(
      (field.name for field in dataclasses.fields(TrainSettings)),
      {
        "steps": steps,
        "log_every": 1,
        "validate_every": 4,
        "checkpoint_every": 1000,
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "batch_size": ROWS * changes.get("accumulate", 1),
      },
    )
  )
  run = {
    "stage": "toy",
    "workdir": workdir,
    "writer": MetricsWriter(workdir),
    "mesh": mesh,
    "dependencies": {"train": settings, "rates": {"learning_rate": learning_rate}},
    "fingerprint": "f" * 64,
    "source": "toys",
    "timeout": 0.0,
  }
  return fit(
    method,
    make_optimizer(settings, learning_rate, NO_DECAY),
    method.init(jax.random.key(0)),
    frozen,
    batches or Batches(hosts.host_shard(mesh)),
    settings,
    StageRun(**take(run, run)),
    jax.random.key(7),
    validate=validation(method, frozen, mesh) if validate is True else validate or None,
    **changes,
  )


def digest(tree):
  """Hex of all bits of a small tree."""
  leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
  return hashlib.sha256(b"".join(leaves)).hexdigest()


def main(workdir, *arguments):
  given = {k: float(v) for k, v in (argument.split("=") for argument in arguments)}
  hosts.start()
  with peers.watched():
    run(workdir, given)


def run(workdir, given):
  mesh = make_mesh(*(int(given.pop(axis, 1)) for axis in ("data", "fsdp", "tensor")))
  pauses = {name: given.pop(name, 0.0) for name in ("pause", "validation_pause")}
  bad = [int(given.pop("bad"))] if "bad" in given else []
  method = Spoilt() if bad else Toy()
  validate = validation(method, place(frozen_tree(), mesh), mesh, pauses["validation_pause"])
  own = {"shard": hosts.host_shard(mesh), "pause": pauses["pause"]}
  batches = MarkedBatches(bad, **own) if bad else Batches(**own)
  whole = {name: int(value) for name, value in given.items()}
  whole |= {"on_nonfinite": "rollback"} if bad else {}
  try:
    fitted = train(workdir, mesh=mesh, method=method, batches=batches, validate=validate, **whole)
  except Interrupted as stop:
    print(f"interrupted {stop.step}", flush=True)
    return
  print(f"done {fitted.steps} {digest(fitted.last)} {digest(fitted.best)}", flush=True)


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  main(*sys.argv[1:])
