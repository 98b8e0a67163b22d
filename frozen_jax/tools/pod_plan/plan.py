"""The plan of a config on a topology: whether each program fits, and what bounds its speed."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from frozen_jax.core.errors import UserError
from frozen_jax.tools.pod_plan.chips import Chip
from frozen_jax.tools.pod_plan.hlo import Program, read_program
from frozen_jax.tools.pod_plan.roofline import Costs, costs, seconds

NOTHING = Costs(0.0, 0.0, {}, 0.0)
_NEEDED = re.compile(r"(?:Used |\()([\d.]+)([KMG])\)? (?:of|exceeds)")
_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30}
BUFFERS = 8  # the largest ones that are listed


@dataclasses.dataclass(frozen=True)
class Buffer:
  """An array that a program makes on each chip, and the line of code that it comes from."""

  nbytes: float
  shape: str
  operation: str
  line: str


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
  """One program on one chip of the mesh.

  bytes_per_chip: "arguments", "temporaries" and "output" (what is not one of the arguments). costs:
  of one run. model_flops: of the loss, gradient or pass alone, nothing computed twice, on one chip.
  buffers: the largest ones.
  """

  name: str
  chip: Chip
  bytes_per_chip: Mapping[str, float]
  costs: Costs
  model_flops: float
  buffers: tuple[Buffer, ...] = ()

  @property
  def total_bytes(self) -> float:
    return sum(self.bytes_per_chip.values())

  @property
  def fits(self) -> bool:
    return self.total_bytes <= self.chip.memory

  @property
  def seconds(self) -> dict[str, float]:
    """The least time of one run by what may bound it: "compute", "hbm", "ici"."""
    return seconds(self.costs, self.chip)

  @property
  def binds(self) -> str:
    """What takes longest."""
    return max(self.seconds, key=lambda name: self.seconds[name])

  @property
  def mfu(self) -> float:
    """Model FLOPs utilisation at that time: `model_flops` by what the chip could do in it."""
    longest = max(self.seconds.values())
    return self.model_flops / (self.chip.flops * longest) if longest else 0.0

  def record(self) -> dict[str, Any]:
    """The plan as JSON values."""
    return {
      "name": self.name,
      "fits": self.fits,
      "bytes_per_chip": dict(self.bytes_per_chip),
      "flops_per_chip": self.costs.flops,
      "model_flops_per_chip": self.model_flops,
      "hbm_bytes_per_chip": self.costs.memory_bytes,
      "collective_bytes_per_chip": dict(self.costs.collective_bytes),
      "seconds": self.seconds,
      "binds": self.binds,
      "mfu": self.mfu,
      "largest_buffers": [dataclasses.asdict(buffer) for buffer in self.buffers],
    }


def plan_program(
  name: str, compile_program: Callable[[], Any], chip: Chip, model_flops: float
) -> ProgramPlan:
  """Compiles a program and reads off what it costs.

  Of a program that the compiler refuses for its size, that is all that is known.

  Raises:
    UserError: the compiler refuses it for another reason.
  """
  try:
    compiled = compile_program()
  except jax.errors.JaxRuntimeError as error:
    needed = _NEEDED.search(str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or not needed:
      raise UserError(f"{name} does not compile for this mesh: {_first_line(error)}") from None
    size = float(needed[1]) * _UNITS[needed[2]]
    return ProgramPlan(name, chip, {"temporaries": size}, NOTHING, model_flops)
  memory, program = compiled.memory_analysis(), read_program(compiled.as_text())
  sizes = {
    "arguments": float(memory.argument_size_in_bytes),
    "temporaries": float(memory.temp_size_in_bytes),
    "output": float(memory.output_size_in_bytes - memory.alias_size_in_bytes),
  }
  return ProgramPlan(name, chip, sizes, costs(program), model_flops, largest_buffers(program))


def largest_buffers(program: Program) -> tuple[Buffer, ...]:
  """The largest arrays that a program makes in the main memory, each place in the code once."""
  skipped = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
  found: dict[tuple[str, str], Buffer] = {}
  for name, often in program.runs.items():
    if not often or name in program.inlined:
      continue
    for operation in program.computations[name]:
      if operation.opcode in skipped or operation.opcode.endswith("-done"):
        continue
      for array in operation.outputs:
        if array.in_main_memory:
          shape = f"{array.dtype}[{','.join(map(str, array.shape))}]"
          buffer = Buffer(array.nbytes, shape, operation.opcode, operation.line)
          found.setdefault((shape, operation.line), buffer)
  return tuple(sorted(found.values(), key=lambda buffer: -buffer.nbytes)[:BUFFERS])


def _first_line(error: Exception) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return lines[0] if lines else type(error).__name__
