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
  header = ("data", "fsdp", "tensor", "rows", "GB", "fits", "seconds", "bound by", "MFU")
  rows = [header]
  for plan in plans:
    (program,) = plan.programs
    longest = max(program.seconds.values())
    rows.append(
      (
        *(str(size) for size in plan.mesh.values()),
        str(plan.sizes.rows),
        _giga(program.total_bytes),
        "yes" if program.fits else "no",
        _time(longest) if longest else "-",
        _BOUNDS[program.binds] if longest else "-",
        f"{program.mfu:.1%}" if longest else "-",
      )
    )
  widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
  return ["  ".join(cell.rjust(n) for cell, n in zip(row, widths, strict=True)) for row in rows]


def _short(line: str) -> str:
  return line[line.rfind("frozen_jax/") :] if "frozen_jax/" in line else line.rpartition("/")[2]


def _giga(count: float) -> str:
  return f"{count / 1e9:.2f}"


def _time(seconds: float) -> str:
  return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"
