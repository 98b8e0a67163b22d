"""A plan as lines of text, at most 100 columns wide."""

from collections.abc import Sequence

from frozen_jax.tools.pod_plan.plan import ProgramPlan
from frozen_jax.tools.pod_plan.planning import Plan

_BOUNDS = {"compute": "products", "hbm": "memory", "ici": "links"}


def report_lines(plan: Plan) -> list[str]:
  """What was planned, each program, and where its largest arrays come from."""
  sizes, chip = plan.sizes, plan.programs[0].chip
  mesh = ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
  lines = [
    f"{plan.request.config}, stage {plan.request.stage}",
    f"{plan.chips} x {chip.name} ({plan.request.topology}): {mesh}",
    f"{sizes.rows} rows of {sizes.length:,} tokens, {sizes.targets} targets a row",
  ]
  if sizes.rows != plan.request.rows:
    lines[-1] += f" ({plan.request.rows} do not split over the mesh)"
  for program in plan.programs:
    first, *others = _program_lines(program)
    lines += ["", first]
    if program.name == "decode_step":
      lines.append(f"  keys and values of the rows: {_giga(plan.cache_bytes)} GB a chip")
    lines += others
  return [*lines, "", "seconds: the least that a chip needs for each, by its peak; nothing was run"]


def _program_lines(program: ProgramPlan) -> list[str]:
  total, memory = program.total_bytes, program.chip.memory
  verdict = "fits" if program.fits else "DOES NOT FIT"
  parts = ", ".join(f"{name} {_giga(size)}" for name, size in program.bytes_per_chip.items())
  lines = [f"{program.name}: {verdict}, {_giga(total)} of {_giga(memory)} GB a chip ({parts})"]
  if not program.costs.flops:
    return lines
  found = program.seconds
  bounds = ", ".join(f"{_BOUNDS[name]} {_time(found[name])}" for name in found)
  ratio = program.costs.flops / program.model_flops if program.model_flops else 0.0
  lines += [
    f"  {bounds}; bound by {_BOUNDS[program.binds]}; MFU {program.mfu:.1%}",
    f"  {program.costs.flops / 1e12:,.2f} TFLOP a chip, {ratio:.2f} of what the method needs",
  ]
  moved = ", ".join(f"{kind} {_giga(n)}" for kind, n in program.costs.collective_bytes.items())
  lines.append(f"  collectives, GB a chip: {moved or 'none'}")
  lines.append("  largest arrays:")
  for buffer in program.buffers[:4]:
    lines.append(
      f"    {_giga(buffer.nbytes):>7} GB {buffer.shape} {buffer.operation} {_short(buffer.line)}"
    )
  return lines


def sweep_lines(plans: Sequence[Plan]) -> list[str]:
  """One line a mesh and batch size, the best first."""
  both = ("GB", "fits", "bound by")
  header = ("data", "fsdp", "tensor", "rows", *both, "a step", "MFU", *both, "a token", "tokens/s")
  rows = [header]
  for plan in plans:
    training, decoding = plan.program("train_step"), plan.program("decode_step")
    rows.append(
      (
        *(str(size) for size in plan.mesh.values()),
        str(plan.sizes.rows),
        *_step_cells(training, plan.fits_for("training")),
        f"{training.mfu:.1%}" if training and training.mfu else "-",
        *_step_cells(decoding, plan.fits_for("decoding")),
        f"{plan.tokens_per_second:,.0f}" if plan.tokens_per_second else "-",
      )
    )
  widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
  lines = ["  ".join(cell.rjust(n) for cell, n in zip(row, widths, strict=True)) for row in rows]
  of_training = sum(widths[:4]) + 2 * 4
  of_decoding = of_training + sum(widths[4:9]) + 2 * 5
  title = f"{'':{of_training}}training step"
  return [f"{title:{of_decoding}}decoding step", *lines]


def _step_cells(program: ProgramPlan | None, fits: bool) -> tuple[str, ...]:
  """Of a step of a sweep: bytes a chip, whether it fits, what bounds it, and its least time."""
  if program is None:
    return ("-",) * 4
  longest = max(program.seconds.values())
  bound, time = (_BOUNDS[program.binds], _time(longest)) if longest else ("-", "-")
  return _giga(program.total_bytes), "yes" if fits else "no", bound, time


def _short(line: str) -> str:
  return line[line.rfind("frozen_jax/") :] if "frozen_jax/" in line else line.rpartition("/")[2]


def _giga(count: float) -> str:
  return f"{count / 1e9:.2f}"


def _time(seconds: float) -> str:
  return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"
