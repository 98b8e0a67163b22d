"""Either side of `re_ranker`: arguments SIDE WORK DTYPE MODEL TEXTS RESULT.

SIDE is `ours` or `peer` (sentence-transformers: its `CrossEncoderTrainer` with `ListNetLoss`, whose
labels make it our loss, and `CrossEncoder.predict`), WORK `train` or `score`, DTYPE that of the
products, MODEL the folder of a CrossEncoder that both load, TEXTS a JSON file of questions with
their passages, the right one first. Scores of the first pass are written to RESULT (.npy).
"""

import functools
import json
import pathlib
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import numpy as np

from benchmarks import worker

LEARNING_RATE = 2e-5
LENGTH = 256  # tokens of a text at most, as by default in configs/frozen_reader.py
STEPS = 10_000  # more than are ever asked for


def main() -> None:
  side, work, dtype, folder, texts, result = sys.argv[1:]
  asked = json.loads(pathlib.Path(texts).read_text(encoding="utf-8"))
  if side == "ours":
    from benchmarks.ours import matrix_seconds
    from frozen_jax.core.host_memory import keep_freed_memory, wait_for_each_program

    keep_freed_memory()  # as the command does
    wait_for_each_program()
    train, scores, seconds = ours_training, ours_scores, functools.partial(matrix_seconds, dtype)
  else:
    train, scores = peer_training, peer_scores
    seconds = functools.partial(peer_matrix_seconds, dtype)
  step = train(folder, dtype, asked) if work == "train" else scores(folder, dtype, asked, result)
  worker.serve(step, seconds)


def written(result: str, scores: np.ndarray) -> float:
  if not pathlib.Path(result).exists():
    np.save(result, scores)
  return float(scores.mean())


def ours_training(folder: str, dtype: str, asked: list) -> Callable[[], float]:
  """Whole steps: batches made from texts, as `fit` takes them."""
  import jax

  from frozen_jax.data.mining import Group
  from frozen_jax.data.pair_encoder import PairEncoder
  from frozen_jax.data.pairs import GroupBatches, GroupOptions
  from frozen_jax.export.cross_encoder import read_cross_encoder
  from frozen_jax.methods.re_ranker import ReRanker
  from frozen_jax.sharding.mesh import make_mesh
  from frozen_jax.training.optimizer import make_optimizer
  from frozen_jax.training.settings import TrainSettings
  from frozen_jax.training.state import create_state
  from frozen_jax.training.step import make_train_step

  base = read_cross_encoder(folder, progress=False)
  method = ReRanker.build(base.encoder, base.head, base.initial_head, dtype=dtype)
  sizes = base.encoder.config
  encoder = PairEncoder(base.encoder.tokenizer, sizes.types, LENGTH)
  groups = [Group(question, (texts[0],), tuple(texts[1:])) for question, texts in asked]
  options = GroupOptions(len(asked[0][1]) - 1)
  batches = GroupBatches(groups, str, encoder, len(asked), options)
  optimizer = make_optimizer(
    TrainSettings(steps=STEPS, warmup_steps=0, weight_decay=0.0), LEARNING_RATE
  )
  key = jax.random.key(0)
  state = create_state(method.init(key), optimizer, key, make_mesh())
  train_step = make_train_step(method, optimizer)

  def step() -> float:
    nonlocal state
    state, metrics = train_step(state, method.frozen(), next(batches))
    jax.block_until_ready(state)
    return float(metrics["loss"])

  return step


def ours_scores(folder: str, dtype: str, asked: list, result: str) -> Callable[[], float]:
  import jax

  from frozen_jax.data.pair_encoder import PairEncoder
  from frozen_jax.evaluation.pair_scores import score_pairs
  from frozen_jax.export.cross_encoder import read_cross_encoder
  from frozen_jax.methods.re_ranker import ReRanker

  base = read_cross_encoder(folder, progress=False)
  method = ReRanker.build(base.encoder, base.head, base.initial_head, dtype=dtype)
  tree, sizes = method.init(jax.random.key(0)), base.encoder.config
  encoder = PairEncoder(base.encoder.tokenizer, sizes.types, LENGTH)
  pairs = [(question, text) for question, texts in asked for text in texts]
  return lambda: written(result, score_pairs(method, tree, {}, encoder, pairs, progress=False))


def peer_training(folder: str, dtype: str, asked: list) -> Callable[[], float]:
  """Its own trainer in a thread, which waits after each step until it is asked for the next."""
  import datasets
  from sentence_transformers.cross_encoder import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
  )
  from sentence_transformers.cross_encoder.losses import ListNetLoss
  from transformers import TrainerCallback

  go: queue.Queue[None] = queue.Queue()
  losses: queue.Queue[float] = queue.Queue()

  class Paced(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **more):
      losses.put(logs["loss"])
      go.get()

  # The softmax of such labels is 1 at the right passage: the listwise softmax over one positive.
  rows = {
    "query": [question for question, _ in asked],
    "docs": [texts for _, texts in asked],
    "labels": [[100.0] + [0.0] * (len(texts) - 1) for _, texts in asked],
  }
  model = CrossEncoder(folder, device="cpu", max_length=LENGTH)
  arguments = CrossEncoderTrainingArguments(
    output_dir=tempfile.mkdtemp(),
    per_device_train_batch_size=len(asked),
    max_steps=STEPS,
    learning_rate=LEARNING_RATE,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    bf16=dtype == "bfloat16",
    disable_tqdm=True,
  )
  trainer = CrossEncoderTrainer(
    model=model,
    args=arguments,
    train_dataset=datasets.Dataset.from_dict(rows),
    loss=ListNetLoss(model),
    callbacks=[Paced()],
  )

  def run() -> None:
    go.get()
    trainer.train()

  threading.Thread(target=run, daemon=True).start()

  def step() -> float:
    go.put(None)
    return losses.get()

  return step


def peer_scores(folder: str, dtype: str, asked: list, result: str) -> Callable[[], float]:
  import torch
  from sentence_transformers import CrossEncoder

  model = CrossEncoder(
    folder, device="cpu", max_length=LENGTH, model_kwargs={"dtype": getattr(torch, dtype)}
  )
  pairs = [(question, text) for question, texts in asked for text in texts]
  return lambda: written(result, model.predict(pairs, show_progress_bar=False))


def peer_matrix_seconds(dtype: str, width: int) -> float:
  import torch

  a = torch.ones((width, width), dtype=getattr(torch, dtype))
  start = time.perf_counter()
  torch.matmul(a, a)
  return time.perf_counter() - start


if __name__ == "__main__":
  main()
