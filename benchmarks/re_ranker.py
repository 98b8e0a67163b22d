"""Training and scoring by a cross-encoder of MiniLM's size against sentence-transformers.

`python -m benchmarks.re_ranker --data=FOLDER`: a folder with corpus.jsonl.gz (`{id, title, text}`)
and nq_train.jsonl.gz (`{question, positive_ids}`). Both sides load one CrossEncoder, made of
all-MiniLM-L6-v2 without any dropout, and read the same texts: questions with their passage and
passages drawn at random. Work `train`: steps of its own trainer (`ListNetLoss`, AdamW) against
ours, from texts to updated weights. Work `score`: `CrossEncoder.predict` unmodified against
`score_pairs`. Both sides multiply in `--dtype`; the peer trains in bfloat16 by its own option,
which keeps the weights in float32 as we do. Each side is a process of its own, they work in turn,
and ratios are taken pair by pair. Ends with an error where first losses or scores differ. Memory is
the peak of the whole process. `--json=FILE` also writes the rows. Needs `pip install -e '.[test]'`.
"""

import argparse
import gzip
import json
import pathlib
import random
import tempfile
from typing import Any

import numpy as np

from benchmarks import pairs
from benchmarks.training_step import machine
from frozen_jax.core.user_path import user_path

MODEL = "minilm-l6-v2"
PASSAGES = 8  # next to each question
TOLERANCE = {"float32": {"train": 1e-3, "score": 1e-4}, "bfloat16": {"train": 0.05, "score": 0.05}}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", type=user_path, required=True, help="corpus and questions")
  parser.add_argument("--train", type=int, default=8, help="questions in a training step")
  parser.add_argument("--score", type=int, default=64, help="questions in a scoring pass")
  parser.add_argument("--dtype", choices=list(TOLERANCE), default="float32", help="of both sides")
  parser.add_argument("--pairs", type=int, default=5, help="measured passes a side")
  parser.add_argument("--json", type=user_path, help="also write the rows to this file")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as made:
    folder = start(pathlib.Path(made))
    sizes = {"train": options.train, "score": options.score}
    rows = [measure(work, folder, options, n) for work, n in sizes.items()]
  if options.json:
    options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
  allowed = TOLERANCE[options.dtype]
  wrong = [row for row in rows if row["largest_difference"] > allowed[row["work"]]]
  if wrong:
    raise SystemExit(f"{wrong[0]['work']}: the two differ by {wrong[0]['largest_difference']:.2e}")


def start(folder: pathlib.Path) -> pathlib.Path:
  """The CrossEncoder that both sides load: MiniLM with a new head, nothing dropped anywhere."""
  import jax

  from frozen_jax.export.cross_encoder import read_cross_encoder, write_cross_encoder
  from frozen_jax.methods.re_ranker import ReRanker

  base = read_cross_encoder(MODEL, progress=False)
  method = ReRanker.build(base.encoder, base.head, base.initial_head)
  tree = method.init(jax.random.key(0))
  weights, context = method.weights(tree, method.frozen()), base.encoder.config.context
  made = write_cross_encoder(
    folder / "model", base.encoder, weights, method.head, tree["head"], context
  )
  path = made / "config.json"
  settings = json.loads(path.read_text())
  none = ("classifier_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob")
  path.write_text(json.dumps(settings | dict.fromkeys(none, 0.0)))
  return made


def texts(data: pathlib.Path, count: int) -> list[tuple[str, list[str]]]:
  """So many questions, each with its own passage and others drawn at random."""
  with gzip.open(data / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
    corpus = {row["id"]: f"{row['title']} {row['text']}".strip() for row in map(json.loads, file)}
  with gzip.open(data / "nq_train.jsonl.gz", "rt", encoding="utf-8") as file:
    asked = [json.loads(line) for line, _ in zip(file, range(count), strict=False)]
  draw, ids = random.Random(0), sorted(corpus)
  return [
    (
      row["question"],
      [corpus[key] for key in (row["positive_ids"][0], *draw.sample(ids, PASSAGES - 1))],
    )
    for row in asked
  ]


def measure(
  work: str, folder: pathlib.Path, options: argparse.Namespace, count: int
) -> dict[str, Any]:
  """Both sides over the texts of so many questions, in turn -> the row of the contract."""
  with tempfile.TemporaryDirectory() as scratch:
    given = f"{scratch}/texts.json"
    pathlib.Path(given).write_text(json.dumps(texts(options.data, count)), encoding="utf-8")
    results = [f"{scratch}/{side}.npy" for side in ("ours", "peer")]
    common = "benchmarks.re_ranker_side", (work, options.dtype, str(folder), given)
    with (
      pairs.Side(common[0], "ours", *common[1], results[0]) as ours,
      pairs.Side(common[0], "peer", *common[1], results[1]) as peer,
    ):
      measured = pairs.compare(ours, peer, options.pairs)
    if work == "train":
      difference = abs(measured.losses[0] - measured.losses[1])
    else:
      difference = float(np.abs(np.load(results[0]) - np.load(results[1])).max())
  low, ratio, high = measured.ratios()
  row = {
    "work": work,
    "ours": count * PASSAGES / measured.median(0),
    "peer": count * PASSAGES / measured.median(1),
    "peer_name": "sentence-transformers",
    "dtype": options.dtype,
    "unit": "pairs/s",
    "ratio": ratio,
    "ratio_min": low,
    "ratio_max": high,
    "memory_ratio": measured.memory_ratio(),
    "questions": count,
    "passages": PASSAGES,
    "largest_difference": difference,
  }
  print(
    f"{work}: {ratio:.2f} times {row['peer_name']} (from {low:.2f} to {high:.2f} over the pairs), "
    f"{row['memory_ratio']:.2f} of its memory\n"
    f"  ours {row['ours']:.1f}, peer {row['peer']:.1f} {row['unit']}; they differ by"
    f" {difference:.1e}",
    flush=True,
  )
  return row


if __name__ == "__main__":
  main()
