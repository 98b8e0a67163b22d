"""Progress: bars on a terminal, lines elsewhere, and a rate without what was compiled."""

import io
import logging

import pytest
from tqdm import tqdm

from frozen_jax.core import progress
from frozen_jax.core.progress import ProgressBar


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands until it is moved: `clock[0] += seconds`."""
  now = [1000.0]
  monkeypatch.setattr("tqdm.std.time", lambda: now[0])
  return now


@pytest.fixture
def lines(caplog):
  """What is logged."""
  caplog.set_level(logging.INFO, logger=progress.__name__)
  return caplog


def stage(**options):
  return ProgressBar(
    **{"total": 10, "desc": "prompt", "unit": "step", "smoothing": 0, "file": io.StringIO()}
    | options
  )


def drawn(bar):
  return str(bar).split("|")[-1]


@pytest.mark.parametrize("initial", [0, 4])
def test_the_rate_counts_from_the_second_step(clock, initial):
  terminal = Terminal()
  with stage(initial=initial, mininterval=0, file=terminal) as bar:
    clock[0] += 100  # the first validation
    bar.compiling()
    assert "compiling" in terminal.getvalue().split("\r")[-1]
    clock[0] += 500
    bar.set_postfix_str("loss 1.0", refresh=False)
    bar.advance(timed=False)
    assert f"{initial + 1}/10 [00:00<?, ?step/s, loss 1.0]" in drawn(bar)
    for _ in range(4):
      clock[0] += 2
      bar.advance()
    assert "[00:08<" in drawn(bar) and "2.00s/step" in drawn(bar)
    bar.compiling()  # another length of texts
    clock[0] += 300
    bar.advance(timed=False)
    assert "[00:08<" in drawn(bar) and "2.00s/step" in drawn(bar)


@pytest.mark.parametrize("initial, to", [(0, 2), (4, 3)])
def test_steps_that_are_taken_back_count_to_the_rate(clock, initial, to):
  with stage(initial=initial, mininterval=0) as bar:
    for _ in range(4):
      clock[0] += 2
      bar.advance()
    bar.back_to(to)
    assert f"{to}/10 [00:08<" in drawn(bar) and "2.00s/step" in drawn(bar)
    clock[0] += 2
    bar.advance()
    assert f"{to + 1}/10 [00:10<" in drawn(bar) and "2.00s/step" in drawn(bar)


def test_without_a_terminal_there_are_lines_now_and_then(lines, clock):
  with stage() as bar:
    with bar.doing("validating"):
      clock[0] += 10
    bar.compiling()
    clock[0] += 500
    bar.advance(timed=False)
    for _ in range(8):
      clock[0] += 10
      bar.set_postfix_str("loss 1.5", refresh=False)
      bar.advance()
  said = [record.getMessage() for record in lines.records]
  assert said == [
    "prompt: 0 of 10 steps, compiling",
    "prompt: 4 of 10 steps, 01:00 left, loss 1.5",
    "prompt: 7 of 10 steps, 00:30 left, loss 1.5",
  ]


@pytest.mark.parametrize(
  "options, count, line",
  [
    ({"total": 5e6, "unit": "B", "unit_scale": True, "desc": "download x"}, 2e6, "2.00M of 5.00MB"),
    ({"unit": " passages", "desc": "read x"}, 7, "7 passages"),
    ({"total": 272, "unit": "tensor", "desc": "load", "delay": 2}, 3, "3 of 272 tensors"),
  ],
)
def test_other_bars_give_lines_too(lines, clock, options, count, line):
  with ProgressBar(**options, file=io.StringIO()) as bar:
    clock[0] += 31
    bar.update(count)
  (record,) = lines.records
  assert record.getMessage().startswith(f"{options['desc']}: {line}")


def test_what_is_quick_says_nothing(lines, clock):
  for _ in ProgressBar(range(3), desc="quick", file=io.StringIO()):
    clock[0] += 1
  assert lines.records == []


def test_a_hidden_bar_says_nothing(lines, clock):
  with stage(disable=True) as bar:
    bar.compiling()
    clock[0] += 100
    bar.advance(timed=False)
    bar.back_to(0)
    with bar.doing("validating"):
      bar.refresh()
  assert lines.records == []


def test_on_a_terminal_it_is_a_bar(clock):
  terminal = Terminal()
  with stage(mininterval=0, file=terminal) as bar:
    bar.set_postfix_str("loss 1.5")
    with bar.doing("validating"):
      assert terminal.getvalue().endswith("validating]")
    bar.advance()
  text = terminal.getvalue()
  assert isinstance(bar, tqdm) and "10%|" in text and text.strip().endswith("loss 1.5]")
