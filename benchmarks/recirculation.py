"""What second passes without training do to perplexity: `python -m benchmarks.recirculation`.

Recirculation and looping (one repetition) of every pair of layers, `--write` below `--read`, at
every share: of the higher layer's states in the mix, or of the new stream (damping). A text is read
as it is, without a chat template, in windows whose every token but the first is predicted (after a
bos token, where the tokenizer gives texts one). The windows of its first half choose a pair and a
share for each method; those of the second half show them beside the LM and the published setting,
with 95% intervals by the paired bootstrap over windows.

Pass one runs once a window: its states at every layer are kept, and a second pass runs the layers
from `write` on alone, in one program for each. Layers are numbers, or fractions of the depth.
`--serial=N` reads N windows of the second half in the serial form, too, at the pair and share that
are best in the parallel one. `--picture=FILE.png` draws the choosing half as a map, `--json=FILE`
writes all figures.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from benchmarks.quantized import TEXT
from benchmarks.work import MODEL
from frozen_jax.backbones import decoder, decoder_layers, loss
from frozen_jax.backbones.load import Decoder, load_decoder
from frozen_jax.core.types import Tree
from frozen_jax.core.user_path import user_path
from frozen_jax.data.sources import open_source
from frozen_jax.data.tasks import LanguageModelTask
from frozen_jax.evaluation.intervals import paired_difference
from frozen_jax.methods.layer_passes import Added, LayerPasses, PositionJunction
from frozen_jax.methods.recirculation import Mix
from frozen_jax.methods.serial_passes import SerialPasses
from frozen_jax.modules.settings import layer_number, written_layer

METHODS = ("recirculation", "looped")
FORMS = ("parallel", "serial")
WRITE, READ = ("0.15", "0.3", "0.4"), ("0.42", "0.6", "0.8")
SHARES = (0.05, 0.1, 0.15, 0.25)
PUBLISHED = ("0.15", "0.42", 0.15)  # layers 4 and 11 of the 26 of Gemma 3 1B
ROWS = 8  # windows of a batch


class Point(NamedTuple):
  """A method with its layers and its share."""

  method: str
  write: int
  read: int
  share: float


@dataclasses.dataclass(frozen=True)
class EitherMix(PositionJunction):
  """The junction of either method, by a number on the device: both are one program."""

  share: Float[Array, ""]
  is_matched: Array

  def next_input(
    self, handed: Float[Array, "B T D"], below: Float[Array, "B T D"]
  ) -> Float[Array, "B T D"]:
    """See `PositionJunction.next_input`."""
    recirculated, looped = (
      Mix(self.share, matched).next_input(handed, below) for matched in (True, False)
    )
    return jnp.where(self.is_matched, recirculated, looped)


def main(arguments: Sequence[str] | None = None) -> None:
  options = _parser().parse_args(arguments)
  loaded = load_decoder(options.model, dtype=options.dtype, progress=False)
  number = lambda find, text: find(text, loaded.config.layers, "layers")
  write = sorted({number(written_layer, text) for text in options.write})
  read = sorted({number(layer_number, text) for text in options.read})
  pairs = [(low, high) for low in write for high in read if low < high < loaded.config.layers]
  points = [Point(m, *pair, share) for m in METHODS for pair in pairs for share in options.share]
  choosing, shown = windows(loaded, options.text, options.choose, options.show, options.length)
  start = time.perf_counter()
  grid = losses(loaded, choosing, points)
  print(f"{options.model}, {len(choosing)} windows of the first half", flush=True)
  _show_grid(grid, points)
  published = [number(layer_number, text) for text in PUBLISHED[:2]]
  chosen = [best(grid, points, method) for method in METHODS]
  chosen.append(Point("recirculation", *published, PUBLISHED[2]))
  found = losses(loaded, shown, chosen)
  rows = compared(found, chosen)
  _show_rows(rows, len(shown))
  if options.serial:
    count = min(options.serial, len(shown))
    both = np.stack([found[0, :count], found[1, :count], serial(loaded, shown[:count], chosen[0])])
    in_form = [chosen[0]._replace(method=f"recirculation, {form}") for form in FORMS]
    rows += compared(both, in_form)
    _show_rows(rows[-3:], count)
  print(f"{time.perf_counter() - start:.0f} s")
  if options.picture:
    draw(options.picture, grid, points, options.model)
  if options.json:
    found = [_row(point, losses, grid[0]) for point, losses in zip(points, grid[1:], strict=True)]
    given = {"model": options.model, "dtype": options.dtype, "length": options.length}
    found = given | {"choosing": found, "shown": rows}
    options.json.write_text(json.dumps(found, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default=MODEL, help="the model, by any name that can be loaded")
  parser.add_argument("--dtype", default="bfloat16", help="the type in which it computes")
  parser.add_argument("--text", default=str(TEXT), help="plain text, as `data.validation`")
  parser.add_argument("--length", type=int, default=256, help="tokens of a window")
  parser.add_argument("--choose", type=int, default=8, help="windows of the first half")
  parser.add_argument("--show", type=int, default=32, help="windows of the second half")
  parser.add_argument("--write", nargs="+", default=WRITE, help="layers that have run")
  parser.add_argument("--read", nargs="+", default=READ, help="layers that have run")
  parser.add_argument("--share", nargs="+", type=float, default=SHARES, help="of the mix")
  parser.add_argument("--serial", type=int, default=0, help="so many of these in both forms")
  parser.add_argument("--picture", type=user_path, help="draws the map to this file")
  parser.add_argument("--json", type=user_path, help="also write the figures to this file")
  return parser


def windows(
  loaded: Decoder, text: str, choose: int, show: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Windows spread evenly over each half of a text, int32 [choose, length] and [show, length]."""
  task = LanguageModelTask(loaded.tokenizer, (length,), loaded.config.vocab_size)
  found = task.prepare(open_source(text))
  whole = len(found) - 1  # the last one may be shorter
  if whole < 2 * max(choose, show):
    raise SystemExit(f"{text} has {whole} windows of {length} tokens; ask for fewer, or shorter")
  at = lambda count, half: whole // 2 * half + np.arange(count) * (whole // 2) // count
  return tuple(
    np.array([found[int(index)].tokens for index in at(count, half)])
    for half, count in enumerate((choose, show))
  )


def losses(loaded: Decoder, tokens: np.ndarray, points: Sequence[Point]) -> np.ndarray:
  """The mean loss of each window in nats, of the LM and of each point: float64 [1 + points, N]."""
  params, config = loaded.params, loaded.config
  places = {place for point in points for place in (point.write, point.read)} - {0}
  places = tuple(sorted(places))
  columns = []
  for batch in _batches(tokens):
    streams, first = first_pass(params, config, batch, places)
    streams = dict(zip(places, streams, strict=True))
    found = [first]
    for point in points:
      layers = LayerPasses(config, point.write, config.layers - 1)
      below = [streams[point.write]] if point.write else []
      states = jnp.concatenate([*below, streams[point.read]], axis=-1)
      is_matched = point.method == "recirculation"
      found.append(second_pass(params, layers, batch, states, point.share, is_matched))
    columns.append(np.array(found, np.float64))
  return np.concatenate(columns, axis=1)


def serial(loaded: Decoder, tokens: np.ndarray, point: Point) -> np.ndarray:
  """The mean loss of each window in the serial form of recirculation, float64 [N]."""
  layers = SerialPasses(loaded.config, point.write, point.read)
  added = Added(None, lambda below, first: None, Mix(point.share, matched=True))

  @jax.jit
  def read(params, tokens):
    hidden = layers.hidden(params, added, tokens, jnp.ones_like(tokens))
    return _row_losses(params, layers.decoder, hidden, tokens)

  found = [read(loaded.params, jnp.asarray(batch)) for batch in _batches(tokens)]
  return np.concatenate(found).astype(np.float64)


def _batches(tokens: np.ndarray) -> Iterator[np.ndarray]:
  for start in range(0, len(tokens), ROWS):
    yield tokens[start : start + ROWS]


@functools.partial(jax.jit, static_argnums=(1, 3))
def first_pass(
  params: Tree, config: decoder.Config, tokens: Int[Array, "B T"], places: tuple[int, ...]
) -> tuple[list[Float[Array, "B T D"]], Float[Array, "B"]]:
  """The stream before each of these layers, and the loss of each row."""
  stream = decoder.input_stream(params, config, decoder.embed(params, config, tokens), None)
  streams: list[Array] = []
  for start, stop in zip((0, *places), (*places, config.layers), strict=True):
    stream, _ = decoder_layers.run(params, config, stream, None, range(start, stop))
    streams.append(stream)
  hidden = decoder.output_states(params, config, streams.pop())
  return streams, _row_losses(params, config, hidden, tokens)


@functools.partial(jax.jit, static_argnums=1)
def second_pass(
  params: Tree,
  layers: LayerPasses,
  tokens: Int[Array, "B T"],
  states: Float[Array, "B T _"],
  share: Float[Array, ""],
  is_matched: Array,
) -> Float[Array, "B"]:
  """The loss of each row in the second pass; states: the streams before `write` and `read`.

  Which layer was read makes no other program: the states are what is read of it.
  """
  added = Added(None, lambda below, first: None, EitherMix(share, is_matched))
  hidden = layers.hidden(params, added, tokens, jnp.ones_like(tokens), states)
  return _row_losses(params, layers.decoder, hidden, tokens)


def _row_losses(params, config, hidden, tokens):
  likely, _ = loss.target_log_likelihood(params, config, hidden[:, :-1], tokens[:, 1:])
  return -likely.mean(axis=1)


def best(grid: np.ndarray, points: Sequence[Point], method: str) -> Point:
  """The method's point of the lowest loss."""
  means = {p: row.mean() for p, row in zip(points, grid[1:], strict=True) if p.method == method}
  return min(means, key=lambda point: means[point])


def compared(found: np.ndarray, points: Sequence[Point]) -> list[dict[str, Any]]:
  """A row for the LM and for each point: perplexity and its change in percent, with intervals."""
  base = {"method": "the LM", "perplexity": float(np.exp(found[0].mean()))}
  return [base, *(_row(point, row, found[0]) for point, row in zip(points, found[1:], strict=True))]


def _row(point: Point, found: np.ndarray, base: np.ndarray) -> dict[str, Any]:
  change = paired_difference(base, found)
  change = {name.replace("difference", "change"): value for name, value in change.items()}
  changes = {name: 100 * float(np.expm1(value)) for name, value in change.items()}
  return {**point._asdict(), "perplexity": float(np.exp(found.mean())), **changes}


def _show_grid(grid: np.ndarray, points: Sequence[Point]) -> None:
  """The perplexities as Markdown: a row for each method and pair, a column for each share."""
  shares = sorted({point.share for point in points})
  print(f"the LM: {np.exp(grid[0].mean()):.3f}")
  print("| method | write | read | " + " | ".join(f"{share:g}" for share in shares) + " |")
  print("|---" * (3 + len(shares)) + "|")
  perplexity = dict(zip(points, np.exp(grid[1:].mean(axis=1)), strict=True))
  for key in dict.fromkeys(point[:3] for point in points):
    cells = [f"{perplexity[Point(*key, share)]:.3f}" for share in shares]
    print("| " + " | ".join([*map(str, key), *cells]) + " |")


def _show_rows(rows: Sequence[dict[str, Any]], count: int) -> None:
  print(f"{count} windows of the second half")
  print("| | write | read | share | perplexity | change |\n|---|---|---|---|---|---|")
  for row in rows:
    if "share" not in row:
      print(f"| {row['method']} | | | | {row['perplexity']:.3f} | |")
      continue
    change = f"{row['change']:+.2f}% ({row['change_low']:+.2f} to {row['change_high']:+.2f})"
    where = f"{row['method']} | {row['write']} | {row['read']} | {row['share']:g}"
    print(f"| {where} | {row['perplexity']:.3f} | {change} |")


def draw(path: Any, grid: np.ndarray, points: Sequence[Point], title: str) -> None:
  """A map for each method and share: by how many percent each pair of layers moves perplexity."""
  from matplotlib.figure import Figure

  write, read, shares = (sorted({point[field] for point in points}) for field in (1, 2, 3))
  figure = Figure(figsize=(2.6 * len(shares) + 1, 2.5 * len(METHODS)), layout="constrained")
  axes = figure.subplots(len(METHODS), len(shares), squeeze=False)
  change = 100 * np.expm1(grid[1:].mean(axis=1) - grid[0].mean())
  cells = dict(zip(points, change, strict=True))
  for (row, column), axis in np.ndenumerate(axes):
    of = lambda low, high, m=METHODS[row], s=shares[column]: cells.get(Point(m, low, high, s))
    values = np.array([[of(low, high) for high in read] for low in write], np.float64)
    image = axis.imshow(values, cmap="RdBu_r", vmin=-10, vmax=10)
    for (y, x), value in np.ndenumerate(values):
      if np.isfinite(value):
        color = "white" if abs(value) > 7 else "black"
        axis.text(x, y, f"{value:+.1f}", ha="center", va="center", fontsize=8, color=color)
    axis.set_title(f"{METHODS[row]}, {shares[column]:g}", fontsize=9)
    axis.set_xticks(range(len(read)), read)
    axis.set_yticks(range(len(write)), write)
    axis.set(xlabel="read", ylabel="write")
  figure.colorbar(image, ax=axes, label="change of perplexity (%)")
  figure.suptitle(title, fontsize=10)
  figure.savefig(path, dpi=80)


if __name__ == "__main__":
  main()
