"""Reads the text of a compiled program: its operations, with how often each of them runs.

XLA's own cost analysis counts the body of a loop once. Here each computation is counted as often as
its callers run it; a loop's number of iterations is the one that XLA found (`known_trip_count`).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
_BYTES = {
  **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1.0),
  **dict.fromkeys(("s4", "u4"), 0.5),
  **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2.0),
  **dict.fromkeys(("f32", "s32", "u32"), 4.0),
  **dict.fromkeys(("f64", "s64", "u64", "c64"), 8.0),
}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_LINE = re.compile(r"^  (ROOT )?%[\w.\-]+ = ")
_NAMES = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
  r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Array:
  """An array of a program: its dtype and shape, and whether it lies in the main memory."""

  dtype: str
  shape: tuple[int, ...]
  in_main_memory: bool = True

  @property
  def size(self) -> int:
    """How many numbers it has."""
    return math.prod(self.shape)

  @property
  def nbytes(self) -> float:
    return self.size * _BYTES.get(self.dtype, 0.0)


@dataclasses.dataclass(frozen=True)
class Operation:
  """One line of a computation; `line` is where in the Python source it comes from, or empty."""

  name: str
  opcode: str
  outputs: tuple[Array, ...]
  arguments: str
  operands: tuple[str, ...]
  attributes: str
  line: str = ""

  @property
  def called(self) -> dict[str, str]:
    """The computations that it runs, by their role."""
    found = dict(_CALLED.findall(self.attributes))
    for branches in _BRANCHES.findall(self.attributes):
      found |= {f"branch {i}": name for i, name in enumerate(_NAMES.findall(branches))}
    return found

  @property
  def collective(self) -> str:
    """The kind of collective that it is or starts; empty if it is none."""
    base = self.opcode.removesuffix("-start")
    return base if base in COLLECTIVES else ""

  @property
  def nbytes(self) -> float:
    """Bytes of its results."""
    return sum(a.nbytes for a in self.outputs)


@dataclasses.dataclass(frozen=True)
class Program:
  """The computations of a compiled program of one device, each a list of operations."""

  computations: dict[str, list[Operation]]
  entry: str

  @functools.cached_property
  def runs(self) -> dict[str, float]:
    """How often each computation runs when the program runs once.

    Of a conditional, all branches are taken to run equally often.
    """
    counts = dict.fromkeys(self.computations, 0.0)

    def visit(name: str, times: float) -> None:
      counts[name] += times
      known = self.find(name)
      for operation in self.computations[name]:
        often = times * (self._trips(operation, known) if operation.opcode == "while" else 1)
        often /= len(operation.called) if operation.opcode == "conditional" else 1
        for role, called in operation.called.items():
          if called in counts and role != "condition":
            visit(called, often)

    visit(self.entry, 1.0)
    return counts

  def _trips(self, loop: Operation, known: dict[str, Operation]) -> int:
    """How often a loop runs: XLA's own figure, or from its counter's start, step and bound.

    The counter is what the condition compares with a constant; 1 for a loop of another form.
    """
    if stated := _TRIPS.search(loop.attributes):
      return int(stated[1])
    condition = self.find(loop.called["condition"])
    bound = max((_constant(op) or 0 for op in condition.values()), default=0)
    index = next((_tuple_index(op) for op in condition.values() if _tuple_index(op) >= 0), -1)
    if bound <= 0 or index < 0:
      return 1
    start = 0
    given = known.get(loop.operands[0])
    if given and given.opcode == "tuple" and index < len(given.operands):
      start = _constant(known.get(given.operands[index])) or 0
    body = self.find(loop.called["body"])
    added = [
      _constant(body.get(name))
      for op in body.values()
      if op.opcode == "add" and any(_tuple_index(body.get(n)) == index for n in op.operands)
      for name in op.operands
    ]
    step = max(filter(None, added), default=1)
    return max(-(-(bound - start) // step), 1)

  @functools.cached_property
  def inlined(self) -> set[str]:
    """The computations that are part of one operation: of fusions and reductions."""
    return {
      called
      for operations in self.computations.values()
      for operation in operations
      for role, called in operation.called.items()
      if role == "to_apply" or operation.opcode == "fusion"
    }

  def operations(self) -> Iterator[tuple[Operation, float]]:
    """All operations, those within fusions too, and how often each runs."""
    for name, often in self.runs.items():
      if often:
        yield from ((operation, often) for operation in self.computations[name])

  def find(self, computation: str) -> dict[str, Operation]:
    """The operations of a computation by name."""
    return {operation.name: operation for operation in self.computations[computation]}


def _constant(operation: Operation | None) -> int | None:
  """The value of an integer constant; None for anything else."""
  if operation is None or operation.opcode != "constant" or not operation.arguments.isdecimal():
    return None
  return int(operation.arguments)


def _tuple_index(operation: Operation | None) -> int:
  """Which element of a tuple an operation takes; -1 where it takes none."""
  if operation is None or operation.opcode != "get-tuple-element":
    return -1
  found = re.search(r"index=(\d+)", operation.attributes)
  return int(found[1]) if found else -1


def read_program(text: str) -> Program:
  """The program of `compiled.as_text()`."""
  computations: dict[str, list[Operation]] = {}
  entry, current, lines = "", "", _source_lines(text)
  for line in _whole_lines(text):
    header = _HEADER.match(line)
    if header:
      current = header[2]
      computations[current] = []
      entry = current if header[1] else entry
    elif current and _LINE.match(line):
      computations[current].append(_operation(line, lines))
  return Program(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
  """The lines of a program; the attributes of an operation may have lines of their own."""
  whole = ""
  for line in text.splitlines():
    if _LINE.match(line) or _HEADER.match(line) or line.strip() in ("", "}"):
      yield whole
      whole = line
    else:
      whole += line
  yield whole


def _operation(line: str, lines: dict[str, str]) -> Operation:
  name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
  end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
  types, rest = rest[:end], rest[end:].lstrip()
  opcode, _, rest = rest.partition("(")
  end = _closing("(" + rest) - 1
  frame = re.search(r"stack_frame_id=(\d+)", rest)
  source = re.search(r'source_file="([^"]*)" source_line=(\d+)', rest)
  at = lines.get(frame[1], "") if frame else f"{source[1]}:{source[2]}" if source else ""
  return Operation(
    name.lstrip("%"),
    opcode,
    tuple(_arrays(types)),
    rest[:end],
    tuple(_NAMES.findall(rest[:end])),
    rest[end:],
    at,
  )


def _arrays(types: str) -> Iterator[Array]:
  for dtype, shape, layout in _ARRAY.findall(types):
    elsewhere = re.search(r"S\((\d+)\)", layout)
    sizes = tuple(int(n) for n in shape.split(",") if n)
    yield Array(dtype, sizes, not elsewhere or elsewhere[1] == "0")


def _closing(text: str) -> int:
  """The index of the parenthesis that closes the one at the start of the text."""
  depth = 0
  for index, character in enumerate(text):
    depth += (character == "(") - (character == ")")
    if depth == 0:
      return index
  return len(text) - 1


def _source_lines(text: str) -> dict[str, str]:
  """ "file:line" of each stack frame that the program's text lists."""
  files = dict(re.findall(r'^(\d+) "(.*)"$', _section(text, "FileNames"), re.MULTILINE))
  places = re.findall(
    r"^(\d+) \{file_name_id=(\d+) .*?line=(\d+)", _section(text, "FileLocations"), re.M
  )
  at = {number: f"{files.get(file, '?')}:{line}" for number, file, line in places}
  frames = re.findall(r"^(\d+) \{file_location_id=(\d+)", _section(text, "StackFrames"), re.M)
  return {frame: at.get(place, "") for frame, place in frames}


def _section(text: str, title: str) -> str:
  start = text.find(f"\n{title}\n")
  return "" if start < 0 else text[start : text.find("\n\n", start + 1)]
