"""What a config would need on a TPU pod, and how fast it could be, without a pod.

    python -m frozen_jax.tools.pod_plan --config=configs/recursive.py:llama3_70b
      --topology=v5p:4x4x8 [--mesh=data=1,fsdp=128,tensor=1 | --sweep[=decoding]] [--stage=NAME]
      [--json=FILE]

The training step, the prefill and the decoding step are compiled for the topology by the compiler
for TPUs (`pip install 'frozen_jax[plan]'`); no TPU is needed and no weight is read. Bytes, FLOPs
and collectives are those of the compiled programs. Seconds are the least that the chip's products,
memory and links take, each alone: a model, not a measurement. Exit status 1: it does not fit.
"""

import argparse
import signal
import sys
from collections.abc import Sequence

import jax

from frozen_jax.core.errors import UserError, exit_status
from frozen_jax.core.files import write_json
from frozen_jax.core.user_path import user_path
from frozen_jax.sharding.mesh import AXES
from frozen_jax.tools.arguments import Parser, add_config, parse_mesh, parse_with_config, positive
from frozen_jax.tools.pod_plan.planning import WORKS, Request, plan_run, sweep
from frozen_jax.tools.pod_plan.report import report_lines, sweep_lines

EXAMPLES = """\
examples:
  python -m frozen_jax.tools.pod_plan --config=configs/recursive.py:llama3_70b --topology=v5p:4x4x8
  python -m frozen_jax.tools.pod_plan --config=configs/id_pt.py:llama3_8b --topology=v5e:4x4 --sweep
"""


def parse(argv: Sequence[str]) -> tuple[Request, argparse.Namespace]:
  """The arguments after the program's name -> what to plan; UserError for invalid ones."""
  parser = Parser(
    prog="python -m frozen_jax.tools.pod_plan",
    description="Compiles a config's programs for a TPU topology and says whether they fit.",
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add_config(parser)
  parser.add_argument(
    "--topology", required=True, metavar="CHIP:SHAPE", help="such as v5e:16x16, v5p:4x4x8"
  )
  parser.add_argument("--mesh", help="data=1,fsdp=128,tensor=1 (default: that of the config)")
  parser.add_argument("--stage", help="of the config (default: the last one)")
  parser.add_argument("--rows", type=positive, help="of a batch (default: train.batch_size)")
  parser.add_argument("--targets", type=positive, default=64, help="of a row (default: 64)")
  parser.add_argument(
    "--sweep",
    nargs="?",
    const="training",
    choices=WORKS,
    help="rank meshes and batch sizes by training (default), or by decoding",
  )
  parser.add_argument("--json", metavar="FILE", help="write the plan there, too")
  given, run = parse_with_config(parser, argv)
  if given.sweep and (given.mesh or given.rows):
    raise UserError("--sweep tries meshes and batch sizes itself; leave out --mesh and --rows")
  if given.json and user_path(given.json).is_dir():
    raise UserError(f"--json={given.json} is a folder; name a file")
  mesh = {axis: getattr(run.mesh, axis) for axis in AXES}
  if given.mesh:
    mesh = dict.fromkeys(AXES, 1) | parse_mesh(given.mesh)
  stage = given.stage or run.stages[-1].name
  names = [one.name for one in run.stages]
  if stage not in names:
    raise UserError(f"--stage={stage} is no stage of the config; it has {', '.join(names)}")
  rows = given.rows or run.stage(stage).train.batch_size
  request = Request(given.config, run, stage, given.topology, mesh, rows, given.targets)
  return request, given


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the plan; the exit status: 1 where something does not fit."""
  fits = []
  jax.config.update("jax_platforms", "cpu")  # libtpu compiles; JAX is to look for no TPU

  def act() -> None:
    request, given = parse(sys.argv[1:] if argv is None else argv)
    if given.sweep:
      plans = sweep(request, given.sweep)
      lines, record = sweep_lines(plans), [plan.record() for plan in plans]
      fits.append(any(plan.fits_for(given.sweep) for plan in plans))
    else:
      plan = plan_run(request)
      lines, record = report_lines(plan), plan.record()
      fits.append(plan.fits)
    print("\n".join(lines))
    if given.json:
      write_json(user_path(given.json), record)

  return exit_status(act) or int(not all(fits))


if __name__ == "__main__":
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may close the pipe
  sys.exit(main())
