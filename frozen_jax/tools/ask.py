"""Asks a finished run at the terminal: a question, its answer, and what was read for it.

    python -m frozen_jax.tools.ask WORKDIR ["What is the capital of Peru?"]

Without a question it asks for one after another, until an empty line or the end of the input. The
run's own config.json says which model and which passages; nothing is written.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from frozen_jax.core.errors import UserError, exit_status
from frozen_jax.core.text_file import check_characters, standard_input_lines
from frozen_jax.core.user_path import user_path
from frozen_jax.pipelines.load_adapter import read_stored
from frozen_jax.run.predict import Predictor, open_predictor
from frozen_jax.run.workdir import CONFIG, read_workdir_json
from frozen_jax.tools.inspect import Parser

EXAMPLE = 'example:\n  python -m frozen_jax.tools.ask runs/frozen_reader "Who lives in Peru?"'
_WIDTH = 100


def answer_text(predictor: Predictor, question: str) -> str:
  """The answer as text, with a line for each passage that was read (its score, id and title), and
  one for the answers that pass one proposed, with how many of its samples gave each.

  Raises UserError for a question that is too long.
  """
  (row,) = predictor([{"id": "1", "question": question}], "the terminal")
  lines = [row["prediction"]]
  if "passages" in row:
    read = row["passages"]
    lines.append(f"read {len(read)} passage{'s' * (len(read) != 1)}, with their scores:")
    lines += [_line(one) for one in read]
  if "candidates" in row:
    lines.append("proposed: " + ", ".join(f"{text} ({n})" for text, n, _ in row["candidates"]))
  return "\n".join(lines)


def _line(passage: dict[str, Any]) -> str:
  return f"  {passage['score']:8.3f}  {passage['id']}  {passage['title']}"[:_WIDTH]


def _questions() -> Iterator[str]:
  """What is typed, line by line; UserError for what is not UTF-8."""
  typed = iter(_typed, None) if sys.stdin.isatty() else standard_input_lines()
  for line in typed:
    if not line.strip():
      return
    yield check_characters(line.strip(), "the question")


def _typed() -> str | None:
  """A line typed at the terminal; None at the end of the input."""
  try:
    return input("question: ")
  except EOFError:
    return None
  except UnicodeDecodeError as error:
    raise UserError("the question is not UTF-8 text; type it in a UTF-8 terminal") from error


def main(argv: Sequence[str] | None = None) -> int:
  """The command; 2 is returned for whatever the user can fix."""

  def act() -> None:
    parser = Parser(
      prog="python -m frozen_jax.tools.ask",
      description="Ask a finished run.",
      epilog=EXAMPLE,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", help="the folder of a finished run")
    parser.add_argument("question", nargs="?", help="what to ask; without it: one after another")
    given = parser.parse_args(argv)
    folder = user_path(given.workdir)
    read_stored(folder)  # says what is missing
    predictor = open_predictor(read_workdir_json(folder / CONFIG), folder)
    asked = given.question and check_characters(given.question, "the question")
    for question in [asked] if asked else _questions():
      print(answer_text(predictor, question), flush=True)

  return exit_status(act)


if __name__ == "__main__":
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may close the pipe
  sys.exit(main())
