"""Several runs as one table, the seeds of a config as mean ± standard error, with differences.

    python -m frozen_jax.tools.compare RUN... [--format=terminal|markdown|csv|json]

`run.results.comparison` computes, `run.results.comparison_formats` writes. No file is written.
"""

import argparse
import signal
import sys
from collections.abc import Sequence

from frozen_jax.core.errors import exit_status
from frozen_jax.run.results.comparison import compare_runs
from frozen_jax.run.results.comparison_formats import CSV_COLUMNS, OUTPUT_FORMATS
from frozen_jax.tools.inspect import Parser

DESCRIPTION = """\
Several runs as one table. RUN is the workdir of a run or of several seeds, an evaluation
(WORKDIR/evaluations/NAME) or a results.json file.

Runs whose config.json differs in nothing but the seed (and the mesh, the stated gains, the sections
of predict and export) are one group, shown as mean ± standard error over its n runs, with the gains
that the first of them states. A run of its own is shown with the 95% intervals over test questions
that its record holds. A run that repeats a seed begins another group.

Differences in exact match are given within a run (the last row against the others) and between
groups (their last rows), where predictions.jsonl of both has the same questions.
"""
EXAMPLES = """\
examples:
  python -m frozen_jax.tools.compare runs/prompt_tuning runs/lora
  python -m frozen_jax.tools.compare runs/recursive-seed* runs/lora-seed* --format=markdown
  python -m frozen_jax.tools.compare runs/*/evaluations/nq --format=csv > nq.csv
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
  """Parses the arguments after the program's name; UserError for invalid ones."""
  parser = Parser(
    prog="python -m frozen_jax.tools.compare",
    description=DESCRIPTION,
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "runs", metavar="RUN", nargs="+", help="a workdir, WORKDIR/evaluations/NAME or a results.json"
  )
  parser.add_argument(
    "--format",
    choices=OUTPUT_FORMATS,
    default="terminal",
    help="terminal: aligned text; markdown: tables after the runs' commands, devices and dates; "
    f"csv: {', '.join(CSV_COLUMNS)}; json: all of it (default: %(default)s)",
  )
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the comparison of the runs that the arguments name; returns the exit status."""

  def run() -> None:
    options = parse_arguments(sys.argv[1:] if argv is None else argv)
    print(OUTPUT_FORMATS[options.format](compare_runs(options.runs)))

  return exit_status(run)


if __name__ == "__main__":
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may close the pipe
  sys.exit(main())
