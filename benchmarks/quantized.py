"""What quantised weights cost in perplexity and save in memory: `python -m benchmarks.quantized`.

A model is loaded as it is and in each kind of `--quantize`, and reads the same windows of a text.
Printed for each: the perplexity of every token of a window but the first, its rise over the model
as it is, and the bytes of the weights on the device (as XLA counts them) over those in bfloat16.
`--model` takes every name that `load_decoder` takes: a copy of a GGUF model in safetensors
(`python -m benchmarks.hf_copy NAME FOLDER`) has no blocks to be kept, so all is quantised anew.
`--json=FILE` also writes the rows.
"""

import argparse
import gzip
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.work import MODEL
from frozen_jax.backbones import decoder, loss
from frozen_jax.backbones.load import Decoder, load_decoder
from frozen_jax.backbones.quantized import QUANTIZATION_KINDS
from frozen_jax.core.user_path import user_path

TEXT = pathlib.Path("../shared/data/text/validation.jsonl.gz")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default=MODEL, help="the model, by any name that can be loaded")
  parser.add_argument("--dtype", default="float32", help="the type in which it computes")
  parser.add_argument(
    "--quantize",
    nargs="*",
    default=QUANTIZATION_KINDS,
    choices=QUANTIZATION_KINDS,
    help="the kinds",
  )
  parser.add_argument("--text", type=user_path, default=TEXT, help="gzipped JSON lines {text}")
  parser.add_argument("--windows", type=int, default=40, help="how many windows are read")
  parser.add_argument("--length", type=int, default=512, help="tokens of a window")
  parser.add_argument("--json", type=user_path, help="also write the rows to this file")
  options = parser.parse_args()
  if not options.text.is_file():
    parser.error(f"there is no text {options.text}; name one with --text")

  rows: list[dict[str, Any]] = []
  for kind in (None, *options.quantize):
    rows.append(_row(kind, options, rows[0]["perplexity"] if rows else None))
    print(
      f"{rows[-1]['quantize']:6} perplexity {rows[-1]['perplexity']:8.4f} "
      f"({rows[-1]['rise']:+.2%})  memory {rows[-1]['memory_ratio']:.4f} of bfloat16  "
      f"{rows[-1]['seconds']:.0f} s",
      flush=True,
    )
  if options.json:
    options.json.write_text(json.dumps({"model": options.model, "rows": rows}, indent=2) + "\n")


def _row(kind: str | None, options: argparse.Namespace, base: float | None) -> dict[str, Any]:
  loaded = load_decoder(options.model, dtype=options.dtype, quantize=kind, progress=False)
  numbers = sum(leaf.size for leaf in jax.tree.leaves(decoder.param_shapes(loaded.config)))
  start = time.perf_counter()
  found = perplexity(loaded, windows(loaded, options.text, options.windows, options.length))
  return {
    "quantize": kind or "none",
    "dtype": options.dtype,
    "perplexity": found,
    "rise": found / (base or found) - 1,
    "memory_ratio": device_bytes(loaded.params) / (2 * numbers),
    "seconds": time.perf_counter() - start,
  }


def windows(loaded: Decoder, text: pathlib.Path, count: int, length: int) -> np.ndarray:
  """The first tokens of a text, int32 [count, length]; its documents are joined by line breaks."""
  with gzip.open(text, "rt", encoding="utf-8") as file:
    documents = [json.loads(line)["text"] for line in file]
  # A token has one character at least, and rarely more than twenty: not all need to be encoded.
  ids = loaded.tokenizer.encode("\n".join(documents)[: 20 * count * length])
  if len(ids) < count * length:
    raise SystemExit(f"{text} has {len(ids)} tokens, too few for {count} windows of {length}")
  return np.array(ids[: count * length], np.int32).reshape(count, length)


def perplexity(loaded: Decoder, tokens: np.ndarray) -> float:
  """exp of the mean loss in nats of every token of the windows [N, T] but the first."""

  @jax.jit
  def total(params, tokens):
    states = decoder.hidden(params, loaded.config, decoder.embed(params, loaded.config, tokens))
    likely, _ = loss.target_log_likelihood(params, loaded.config, states[:, :-1], tokens[:, 1:])
    return -likely.sum()

  sums = [float(total(loaded.params, jnp.asarray(row))) for row in np.split(tokens, len(tokens))]
  return float(np.exp(np.sum(sums) / tokens[:, 1:].size))


def device_bytes(params: Any) -> int:
  """What the arrays take on the device. (`nbytes` counts a whole byte for a 4-bit number.)"""
  compiled = jax.jit(lambda params: 0, keep_unused=True).lower(params).compile()
  return compiled.memory_analysis().argument_size_in_bytes


if __name__ == "__main__":
  main()
