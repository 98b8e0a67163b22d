"""What a compiled program costs on one chip: FLOPs, bytes, and the least time that each takes."""

import collections
import dataclasses
import math
import re
from typing import Any

import numpy as np

from frozen_jax.tools.pod_plan.chips import Chip
from frozen_jax.tools.pod_plan.hlo import Array, Operation, Program

# Operations that move nothing: names for parts of others, or the end of what was counted before.
_FREE = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while"),
  *("conditional", "call", "partition-id", "replica-id", "opt-barrier", "iota", "async-start"),
  *("async-update", "custom-call-done"),
}
_SLICES = ("dynamic-slice", "slice", "gather")
_SLICE_STARTS = ("slice-start", "dynamic-slice-start")
_SAME_NUMBERS = ("bitcast", "reshape", "copy", "convert", "transpose")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
# Products of queries and keys or weights and values in each kernel.
_SPLASH_MASK = re.compile(r"(causal|both_ways)_(\d+|all)")
_SPLASH_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of one run of a program on one chip: FLOPs of products, bytes of memory and of collectives."""

  flops: float
  memory_bytes: float
  collective_bytes: dict[str, float]
  link_bytes: float  # what comes in over the links


def costs(program: Program) -> Costs:
  """The costs of a compiled program. A product's multiplication and addition count as two."""
  operations = {name: program.find(name) for name in program.computations}
  flops, moved, link = 0.0, collections.Counter[str](), 0.0
  for name, often in program.runs.items():
    if often:
      flops += often * sum(_flops(one, operations[name]) for one in operations[name].values())
  for name, one in collectives(program):
    size = program.runs[name] * _moved(one, operations[name])
    moved[one.collective] += size
    link += size * _ways(one.collective, _group_size(one))
  return Costs(flops, _memory_bytes(program, operations), dict(moved), link)


def collectives(program: Program) -> list[tuple[str, Operation]]:
  """The collectives that run, each with its computation.

  One that runs alongside products is written in several of their fusions, as parts of one channel:
  it is listed once.
  """
  found: dict[str, tuple[str, Operation]] = {}
  for name, often in program.runs.items():
    for one in program.computations[name] if often else ():
      if one.collective:
        channel = re.search(r"channel_id=(\d+)", one.attributes)
        found.setdefault(channel[1] if channel else f"{name} {one.name}", (name, one))
  return list(found.values())


def seconds(costs: Costs, chip: Chip) -> dict[str, float]:
  """The least time for products ("compute"), memory ("hbm") and links ("ici") of a chip."""
  return {
    "compute": costs.flops / chip.flops,
    "hbm": costs.memory_bytes / chip.memory_bandwidth,
    "ici": costs.link_bytes / chip.link_bandwidth,
  }


def _flops(operation: Operation, known: dict[str, Operation]) -> float:
  if operation.opcode == "dot":
    sizes = _shape(operation.operands[0], known)
    dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", operation.attributes)
    summed = math.prod(sizes[int(i)] for i in dims[1].split(",") if i) if dims else 1
    return 2.0 * operation.outputs[0].size * summed
  if operation.opcode == "convolution":
    return _convolution_flops(operation, known)
  if operation.opcode == "custom-call":
    return _splash_flops(operation, known)
  return 0.0


def _splash_flops(operation: Operation, known: dict[str, Operation]) -> float:
  """Of the kernels of splash attention, by how many keys a query meets (`splash_attention`)."""
  for name, products in _SPLASH_PRODUCTS.items():
    if name in operation.name:
      arrays = [known[one].outputs[0] for one in operation.operands]
      queries = max((a for a in arrays if "f" in a.dtype), key=lambda a: a.size)  # [.., T, C]
      keys = float(queries.shape[-2])
      found = _SPLASH_MASK.search(operation.attributes)
      ways, window = found.groups() if found else ("causal", "all")
      sides = 2 if ways == "both_ways" else 1
      keys = keys * sides / 2 if window == "all" else min(keys, float(window)) * sides
      return 2.0 * products * queries.size * keys
  return 0.0


def _convolution_flops(operation: Operation, known: dict[str, Operation]) -> float:
  """2 for each number of the input that meets one of the kernel: TPUs' products are of this form.

  Batched products have the batch as a window that meets one number a place, so that only pairs of
  places within the input count.
  """
  left, right, out = _LABELS.search(operation.attributes).groups()
  inputs, kernel = (_shape(name, known) for name in operation.operands[:2])
  result = operation.outputs[0].shape
  total = 2.0 * kernel[right.index("i")]
  total *= math.prod(n for n, label in zip(result, out, strict=True) if label in "bf")
  window = _window(operation.attributes)
  for label in filter(str.isdigit, out):
    sizes = inputs[left.index(label)], kernel[right.index(label)], result[out.index(label)]
    total *= _meetings(*sizes, {key: values[int(label)] for key, values in window.items()})
  return total


def _window(attributes: str) -> dict[str, list[str]]:
  found = _WINDOW.search(attributes)
  fields = dict(part.split("=") for part in found[1].split()) if found else {}
  return {key: value.split("x") for key, value in fields.items()}


def _meetings(size: int, kernel: int, places: int, window: dict[str, str]) -> int:
  """Pairs of a place of the result and one of the kernel which meet a number of the input."""
  option = lambda name, default=1: int(window.get(name, default))
  before = int(window.get("pad", "0_0").split("_")[0])
  dilation = option("lhs_dilate")
  at = np.arange(places)[:, None] * option("stride") - before
  at = at + np.arange(kernel) * option("rhs_dilate")
  inside = (at >= 0) & (at <= (size - 1) * dilation) & (at % dilation == 0)
  return int(inside.sum())


def _shape(name: str, known: dict[str, Operation]) -> tuple[int, ...]:
  return known[name].outputs[0].shape


def _moved(operation: Operation, known: dict[str, Operation]) -> float:
  """Bytes of the whole array that a collective makes or reduces, on one device."""
  given = sum(known[name].nbytes for name in operation.operands if name in known)
  made = operation.nbytes
  if operation.opcode.endswith("-start") and len(operation.outputs) > 1:
    made -= given  # its results name the operands, too
  return max(given, made)


def _group_size(operation: Operation) -> int:
  """How many devices take part in each of a collective's groups."""
  text = operation.attributes
  if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
    return int(found[2])
  if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
    return len(found[1].split(","))
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
  return 2


def _ways(kind: str, group: int) -> float:
  """How often each byte comes in over the links."""
  if kind.startswith("collective"):
    return 1.0
  return (2.0 if kind == "all-reduce" else 1.0) * (group - 1) / max(group, 1)


def _memory_bytes(program: Program, operations: dict[str, dict[str, Operation]]) -> float:
  """Bytes read from the main memory and written to it."""
  total = 0.0
  for name, often in program.runs.items():
    if not often or name in program.inlined:
      continue
    for operation in program.computations[name]:
      if operation.opcode not in _FREE and not operation.opcode.endswith("-done"):
        total += often * _operation_bytes(operation, operations[name], operations)
  for name, one in collectives(program):
    if name in program.inlined:  # what runs alongside products
      total += program.runs[name] * sum(a.nbytes for a in one.outputs if a.in_main_memory)
  return total


def _operation_bytes(operation, known, operations) -> float:
  """Bytes of the main memory that one operation reads and writes."""
  in_memory = lambda arrays: sum(a.nbytes for a in arrays if a.in_main_memory)
  inputs = [known[name] for name in operation.operands if name in known]
  if operation.opcode in _SLICES:
    return 2 * in_memory(operation.outputs)
  if operation.opcode == "dynamic-update-slice":
    return 2 * in_memory(inputs[1].outputs)
  if operation.opcode in _SLICE_STARTS:
    source, result = operation.outputs[:2]
    return result.nbytes * (source.in_main_memory + result.in_main_memory)
  if operation.opcode.endswith("-start"):
    return in_memory(operation.outputs)  # the operand's name and the result
  if operation.opcode != "fusion":
    return in_memory(operation.outputs) + sum(in_memory(one.outputs) for one in inputs)
  body = operations[operation.called["calls"]]
  # The results of collectives that run alongside are passed on from fusion to fusion.
  passed = [a for one in body.values() if one.collective for a in one.outputs]
  total = _written(operation, body, passed)
  for number, one in enumerate(inputs):
    if not any(_same(a, b) for a in one.outputs for b in passed):
      whole, size = in_memory(one.outputs), sum(a.size for a in one.outputs)
      total += whole * min(1.0, _read(number, body, operations) / max(size, 1))
  return total


def _read(number: int, body: dict[str, Operation], operations: dict[str, Any]) -> float:
  """How many of a fusion's operand's numbers it reads: where it slices it, those of the slices."""
  same = lambda one: one.opcode == "parameter" and one.arguments == str(number)
  parameter = next(filter(same, body.values()), None)
  return math.inf if parameter is None else _read_by_users(parameter.name, body, operations)


def _read_by_users(name: str, body: dict[str, Operation], operations: dict[str, Any]) -> float:
  users = [one for one in body.values() if name in one.operands]
  if not users:
    return math.inf  # a result
  total = 0.0
  for user in users:
    first = user.operands[0] == name
    inner = operations[user.called["calls"]] if user.opcode == "fusion" else {}
    if first and user.opcode in _SLICES:
      total += user.outputs[0].size
    elif user.opcode in _SAME_NUMBERS or _has_same_numbers(inner):
      total += _read_by_users(user.name, body, operations)
    elif inner:
      places = [i for i, one in enumerate(user.operands) if one == name]
      total += sum(_read(i, inner, operations) for i in places)
    elif not (first and user.opcode == "dynamic-update-slice"):
      return math.inf
  return total


def _has_same_numbers(body: dict[str, Operation]) -> bool:
  """Whether a fusion gives the numbers of its one operand in another layout, shape or dtype."""
  opcodes = [one.opcode for one in body.values()]
  return opcodes.count("parameter") == 1 and set(opcodes) <= {"parameter", *_SAME_NUMBERS}


def _written(operation: Operation, body: dict[str, Operation], passed: list[Array]) -> float:
  """Bytes that a fusion writes: of an array that it updates only those of the update."""
  updates = [op for op in body.values() if op.opcode == "dynamic-update-slice"]
  new = [a for a in operation.outputs if not any(_same(a, b) for b in passed)]
  made = sum(a.nbytes for a in new if a.in_main_memory)
  for update in updates:
    whole, part = update.outputs[0], body[update.operands[1]].outputs[0]
    if any(_same(whole, a) for a in new):
      made -= whole.nbytes - part.nbytes
  return max(made, 0.0)


def _same(a: Array, b: Array) -> bool:
  return a.shape == b.shape and a.dtype == b.dtype
