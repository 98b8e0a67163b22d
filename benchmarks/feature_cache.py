"""Encoding texts in each epoch or once: `python -m benchmarks.feature_cache`.

Texts of a mixture of tasks in batches of 32, in another order each epoch, with the states of
MiniLM-L6 on the host at the end. The peer encodes each batch anew, padded to its longest text. Ours
goes by way of the feature store:

  feature_cache_first    an epoch in which every text is new: encoding, and writing to disk
  feature_cache_memory   an epoch after that, from memory
  feature_cache_disk     an epoch after that which keeps nothing in memory
  feature_cache_training an epoch after that of training ID-PT of SmolLM2-135M in bfloat16 without
                         p', on an eighth of the texts, against steps that encode their texts

Each side is a process of its own; they do an epoch in turn, and ratios are taken pair by pair.
`--json=FILE` also writes the rows. Needs `pip install -e '.[test]'`.
"""

import argparse
import dataclasses
import gzip
import json
import math
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import pairs, work, worker
from benchmarks.training_step import machine
from frozen_jax.core.user_path import user_path

TEXT = pathlib.Path("../shared/data/multitask/t0_train.jsonl.gz")
PEERS = {"first": "encoded", "memory": "encoded", "disk": "encoded", "training": "encoding_steps"}
WIDTHS, ROWS, TRAINING_ROWS = (32, 64, 128, 256), 32, 8
TOLERANCE = 1e-3  # of the mean size of a state, or of the first loss, relative


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--texts", type=int, default=512, help="how many texts make an epoch")
  parser.add_argument("--source", type=user_path, default=TEXT, help="gzipped rows {input}")
  parser.add_argument("--pairs", type=int, default=3, help="measured epochs of each side")
  parser.add_argument("--json", type=user_path, help="also write the rows to this file")
  parser.add_argument("--side", choices=(*PEERS, *PEERS.values()), help=argparse.SUPPRESS)
  parser.add_argument("--folder", type=user_path, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if not options.source.is_file():
    parser.error(f"there is no {options.source}; name one with --source")
  if options.side:
    made = _training if options.side in ("training", PEERS["training"]) else _reading
    worker.serve(made(options), lambda width: math.inf)  # no use of the machine is reported
    return
  with tempfile.TemporaryDirectory() as folder:
    rows = [_row(name, options, pathlib.Path(folder)) for name in PEERS]
  if options.json:
    options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


def _row(name: str, options: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
  def side(which: str) -> pairs.Side:
    given = {"texts": options.texts, "source": options.source, "folder": folder / name}
    arguments = [f"--{key}={value}" for key, value in (given | {"side": which}).items()]
    return pairs.Side("benchmarks.feature_cache", *arguments)

  with side(name) as ours, side(PEERS[name]) as peer:
    measured = pairs.compare(ours, peer, options.pairs)
  if abs(measured.losses[0] / measured.losses[1] - 1) > TOLERANCE:
    raise SystemExit(f"{name}: the states differ, {measured.losses[0]} and {measured.losses[1]}")
  low, ratio, high = measured.ratios()
  texts = options.texts // 8 if name == "training" else options.texts
  row = {
    "work": f"feature_cache_{name}",
    "ours": texts / measured.median(0),
    "peer": texts / measured.median(1),
    "peer_name": "encoding in each epoch",
    "unit": "texts/s",
    "ratio": ratio,
    "ratio_min": low,
    "ratio_max": high,
    "memory_ratio": measured.memory_ratio(),
  }
  print(
    f"{row['work']:22} {row['ours']:9.1f} {row['unit']}, {row['peer']:8.1f} by {row['peer_name']}: "
    f"{ratio:.2f} times (from {low:.2f} to {high:.2f} over the pairs)",
    flush=True,
  )
  return row


def _reading(options: argparse.Namespace) -> Callable[[], float]:
  """An epoch of a side that only reads: it returns the mean size of the states' numbers."""
  loaded, encode = _encoder()
  batches = _batches(_texts(options, loaded.tokenizer), ROWS)
  stored = _states(options, loaded, encode)

  def epoch() -> float:
    nonlocal stored
    if options.side == "first":
      stored = _states(options, loaded, encode)
    sizes = [_size(batch, stored, encode) for batch in next(batches)]
    if stored:
      stored.flush()
    return sum(sizes) / options.texts

  return epoch


def _training(options: argparse.Namespace) -> Callable[[], float]:
  """An epoch of a side that trains: it returns the first step's loss."""
  loaded, encode = _encoder()
  batches = _batches(_texts(options, loaded.tokenizer)[::8], TRAINING_ROWS)
  stored, step = _states(options, loaded, encode), _train_step(loaded)

  def epoch() -> float:
    return [step(stored(batch) if stored else batch) for batch in next(batches)][0]

  return epoch


def _encoder() -> tuple[Any, Callable[[Any, Any], Any]]:
  """MiniLM-L6, and its states of tokens and mask."""
  import jax

  from frozen_jax.backbones import encoder
  from frozen_jax.backbones.load_encoder import load_encoder

  loaded = load_encoder("minilm-l6-v2", progress=False)

  @jax.jit
  def run(params: Any, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    embedded = encoder.embed(params, loaded.config, tokens)
    return encoder.hidden(params, loaded.config, embedded, mask)

  return loaded, lambda tokens, mask: run(loaded.params, tokens, mask)


def _states(options: argparse.Namespace, loaded: Any, encode: Any) -> Any:
  """An empty store of the side's own; None for a side without."""
  from frozen_jax.data.encoded_batches import TextStates
  from frozen_jax.data.feature_store import FeatureStore

  if options.side in PEERS.values():
    return None
  shutil.rmtree(options.folder, ignore_errors=True)
  memory = {"memory_bytes": 0} if options.side == "disk" else {}
  store = FeatureStore(options.folder, loaded.config.width, "float32", **memory)
  return TextStates(store, encode)


def _train_step(text_encoder: Any) -> Callable[[dict[str, np.ndarray]], float]:
  """A batch of an encoder's texts -> the loss of a step, which has then been done.

  The LM reads as many tokens as the encoder; the last 8 positions are the targets.
  """
  import jax
  import jax.numpy as jnp

  from frozen_jax.methods.id_pt import InputDependentPromptTuning
  from frozen_jax.models.frozen_lm import load_frozen
  from frozen_jax.modules.prompt_generator import GeneratorConfig
  from frozen_jax.modules.settings import PromptSettings
  from frozen_jax.sharding.mesh import make_mesh
  from frozen_jax.training.optimizer import make_optimizer
  from frozen_jax.training.settings import TrainSettings
  from frozen_jax.training.state import create_state
  from frozen_jax.training.step import make_train_step

  lm = dataclasses.replace(load_frozen(work.MODEL, "bfloat16"), encoder=text_encoder)
  sizes = lm.config, text_encoder.config, GeneratorConfig(), lm.embedding_rms
  method = InputDependentPromptTuning(*sizes, PromptSettings(), constant=False)
  optimizer = make_optimizer(TrainSettings(steps=1000, warmup_steps=0, weight_decay=0.0), 1e-3)
  key = jax.random.key(0)
  state = create_state(method.init(lm, key), optimizer, key, make_mesh())
  train_step = make_train_step(method, optimizer)
  frozen = lm.frozen({})

  def step(batch: dict[str, np.ndarray]) -> float:
    nonlocal state
    mask = batch["encoder_mask"]
    tokens = np.tile(np.arange(3, 3 + mask.shape[1], dtype=np.int32), (len(mask), 1))
    last = np.tile(np.arange(mask.shape[1] - work.ANSWER - 1, mask.shape[1] - 1), (len(mask), 1))
    text = {"tokens": tokens, "mask": np.ones_like(tokens), "target_positions": last}
    text |= {"target_ids": tokens[:, -work.ANSWER :], "target_mask": np.ones_like(last)}
    placed = {name: jnp.asarray(value) for name, value in (batch | text).items()}
    state, metrics = train_step(state, frozen, placed)
    return float(metrics["loss"])

  return step


def _size(batch: dict[str, np.ndarray], states: Any, encode: Any) -> float:
  mask = batch["encoder_mask"]
  if states:
    made = states(batch)["encoder_states"]
  else:
    made = np.asarray(encode(batch["encoder_tokens"], mask))
  # One number of each position is enough to tell other states, and costs next to nothing.
  return float((np.abs(made[..., 0]) * mask).sum())


def _texts(options: argparse.Namespace, tokenizer: Any) -> list[list[int]]:
  with gzip.open(options.source, "rt", encoding="utf-8") as file:
    texts = [json.loads(line)["input"] for line in file]
  chosen = np.random.default_rng(0).choice(len(texts), options.texts, replace=False)
  encoded = tokenizer([texts[index] for index in chosen], truncation=True, max_length=WIDTHS[-1])
  return encoded["input_ids"]


def _batches(texts: list[list[int]], rows: int) -> Iterator[list[dict[str, np.ndarray]]]:
  """The batches of one epoch after the other; the same in every process."""
  random = np.random.default_rng(1)
  while True:
    order = random.permutation(len(texts))
    yield [
      _padded([texts[index] for index in order[start : start + rows]])
      for start in range(0, len(order), rows)
    ]


def _padded(texts: list[list[int]]) -> dict[str, np.ndarray]:
  width = next(width for width in WIDTHS if width >= max(map(len, texts)))
  tokens, mask = np.zeros((2, len(texts), width), np.int32)
  for row, text in enumerate(texts):
    tokens[row, : len(text)], mask[row, : len(text)] = text, 1
  return {"encoder_tokens": tokens, "encoder_mask": mask}


if __name__ == "__main__":
  main()
