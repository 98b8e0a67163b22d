"""The parameters of a model, and their shards on each device of a mesh, without loading weights.

    python -m frozen_jax.tools.inspect NAME [--mesh=data=1,fsdp=2,tensor=4] [--dtype=bfloat16]
      [--quantize=int8]

Shapes and dtypes come from the headers of the files, so a laptop can plan for a pod: the mesh may
have more devices than the machine.
"""

import argparse
import dataclasses
import math
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from frozen_jax.backbones import assemble, encoder, load, load_encoder
from frozen_jax.backbones.quantized import check_quantization
from frozen_jax.backbones.quantized_reading import block_types, loaded_shapes
from frozen_jax.backbones.stored_tensors import StoredTensors
from frozen_jax.core import paths
from frozen_jax.core.dtypes import WEIGHT_DTYPES
from frozen_jax.core.errors import UserError, exit_status
from frozen_jax.sharding import rules
from frozen_jax.sharding.mesh import AXES
from frozen_jax.tools.arguments import Parser, parse_mesh

EXAMPLES = """\
examples:
  python -m frozen_jax.tools.inspect smollm2-135m-instruct
  python -m frozen_jax.tools.inspect ~/models/llama-70b --dtype=bfloat16 --mesh=fsdp=16,tensor=8
"""
SIZES = ("layers", "width", "heads", "kv_heads", "head_dim", "mlp_width", "context", "vocab_size")
FORMAT_NAMES = {"hf": "safetensors", "gguf": "GGUF"}


@dataclasses.dataclass(frozen=True)
class ParameterRow:
  """One array of the parameter tree.

  stored: dtypes and name of its stored tensors. spec: the mesh axes of each dimension. shard_bytes:
  its bytes on one device. indivisible: a dimension is not sharded only because the mesh does not
  divide it.
  """

  path: str
  shape: tuple[int, ...]
  dtype: str
  stored: str
  spec: tuple[rules.MeshAxes, ...]
  bytes: int
  shard_bytes: int
  indivisible: bool


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
  """Parses the arguments after the program's name; UserError for invalid ones."""
  parser = Parser(
    prog="python -m frozen_jax.tools.inspect",
    description="The parameters of a model, and their shards on each device of a mesh. Only the "
    "headers of its files are read.",
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "name",
    metavar="NAME",
    help="a built-in name, a folder with config.json and safetensors files, a .gguf file, or "
    "hf:owner/name[@revision]",
  )
  parser.add_argument(
    "--mesh",
    metavar="AXIS=N,...",
    type=_mesh,
    default=_mesh(""),
    help=f"sizes of the axes {', '.join(AXES)} (1 where not given); more devices than this "
    "machine has are fine",
  )
  parser.add_argument(
    "--dtype",
    default="float32",
    help=f"type of the weights in memory: {' or '.join(WEIGHT_DTYPES)} (default: %(default)s)",
  )
  parser.add_argument("--quantize", help="int8, int4 or nf4: quantisation of the weights")
  return parser.parse_args(argv)


def _mesh(text: str) -> AbstractMesh:
  """The mesh of `--mesh`, without devices."""
  sizes = dict.fromkeys(AXES, 1) | parse_mesh(text)
  if not all(sizes.values()):
    raise UserError(f"--mesh={text} is no mesh of known size; give each axis 1 or more")
  return AbstractMesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def inspect(options: argparse.Namespace) -> str:
  """The description of a model, in several lines.

  Raises:
    UserError: no such model, or its files are not those of a model.
  """
  dtype, kind = load.weight_dtype(options.dtype), options.quantize
  if kind is not None:
    check_quantization(kind)
  path, stored = load.open_headers(options.name)
  if stored.family.network is encoder:
    if kind is not None:
      raise UserError(f"{options.name} is an encoder, which is not quantised; leave --quantize out")
    config, leaves = load_encoder.plan_encoder(path, stored)
  else:
    config, leaves = stored.config, load.plan_decoder(stored)
  rows = parameter_rows(leaves, stored, dtype, kind, options.mesh)
  summary = _summary(stored, config, leaves)
  return "\n".join([*summary, "", *_table(rows, options.mesh), "", *_totals(rows, options.mesh)])


def parameter_rows(
  leaves: Sequence[assemble.Leaf],
  stored: StoredTensors,
  dtype: np.dtype,
  kind: str | None,
  mesh: AbstractMesh,
) -> list[ParameterRow]:
  """The arrays of the tree as they would be loaded, quantised by this kind, and sharded."""
  shapes = {leaf.path: jax.ShapeDtypeStruct(leaf.shape, np.float32) for leaf in leaves}
  blocks = block_types(leaves, stored, kind) if kind else {}
  arrays = paths.flatten(loaded_shapes(paths.unflatten(shapes), kind, dtype, blocks))
  rows = []
  for leaf in sorted(leaves, key=lambda leaf: leaf.path):
    dtypes = ", ".join(sorted({stored.dtypes[name] for name in leaf.names}))
    part = f" (part {leaf.source.part.index + 1})" if leaf.source.part else ""
    axes = rules.axes_of(leaf.path, stored.family.network.PARAM_AXES)
    wanted = [_num_shards(mesh, rules.MESH_AXES_OF[axis] if axis else None) for axis in axes]
    for subpath, array in jax.tree_util.tree_leaves_with_path(arrays[leaf.path]):
      spec = rules.spec_of(array.shape, axes, mesh, leaf.path)
      shard = NamedSharding(mesh, spec).shard_shape(array.shape)
      rows.append(
        ParameterRow(
          path=leaf.path + jax.tree_util.keystr(subpath[-1:]),
          shape=array.shape,
          dtype=array.dtype.name,
          stored=f"{dtypes:6} {leaf.source.name}{part}",
          spec=tuple(spec),
          bytes=_bytes(array.shape, array.dtype),
          shard_bytes=_bytes(shard, array.dtype),
          indivisible=any(
            size > 1 and _num_shards(mesh, on) < count  # a dimension of 1 (of scales) costs little
            for size, on, count in zip(array.shape, spec, wanted, strict=True)
          ),
        )
      )
  return rows


def _num_shards(mesh: AbstractMesh, axes: rules.MeshAxes) -> int:
  names = (axes,) if isinstance(axes, str) else axes or ()
  return math.prod(mesh.shape[name] for name in names)


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
  info = jnp.finfo if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo
  return -(-math.prod(shape) * info(dtype).bits // 8)


def _summary(stored: Any, config: Any, leaves: Sequence[assemble.Leaf]) -> list[str]:
  """Family, sizes, all other fields that differ from their defaults, and the files' sizes."""
  fields = {field.name: field.default for field in dataclasses.fields(config)}
  sizes = [f"{name} {getattr(config, name):,}" for name in SIZES if name in fields]
  more = [
    f"{name} {_value(getattr(config, name))}"
    for name, default in fields.items()
    if name not in SIZES and getattr(config, name) != default
  ]
  kind = "encoder" if stored.family.network is encoder else "decoder"
  parameters = sum(math.prod(leaf.shape) for leaf in leaves)
  stored_bytes = sum(stored.num_bytes(name) for name in stored.shapes)
  return [
    f"family      {stored.family.hf_name}, {kind}, read from {FORMAT_NAMES[stored.format]}",
    f"sizes       {', '.join(sizes)}",
    f"also        {', '.join(more) or 'nothing unusual'}",
    f"parameters  {parameters:,} in {len(leaves)} arrays",
    f"stored      {_human_bytes(stored_bytes)} in {len(stored.shapes)} tensors",
  ]


def _value(value: Any) -> str:
  if isinstance(value, tuple) and len(value) > 4:  # one for each layer
    return " + ".join(f"{count} {_value(kind)}" for kind, count in Counter(value).items())
  if dataclasses.is_dataclass(value):
    changed = [f for f in dataclasses.fields(value) if getattr(value, f.name) != f.default]
    return "(" + ", ".join(f"{f.name} {_value(getattr(value, f.name))}" for f in changed) + ")"
  return f"{value:g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[ParameterRow], mesh: AbstractMesh) -> list[str]:
  """The arrays, one a line; sharding: the mesh axes of each dimension, - where it has none."""
  lines = [("array", "shape", "in memory", "sharding", "a device", "stored as")]
  for row in rows:
    split = [
      "-"
      if on is None or _num_shards(mesh, on) == 1
      else "+".join([on] if isinstance(on, str) else on)
      for on in row.spec
    ]
    lines.append(
      (
        row.path,
        " x ".join(map(str, row.shape)),
        row.dtype,
        ", ".join(split) + " !" * row.indivisible,
        _human_bytes(row.shard_bytes),
        row.stored,
      )
    )
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  return [
    "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    for line in lines
  ]


def _totals(rows: Sequence[ParameterRow], mesh: AbstractMesh) -> list[str]:
  shape = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
  all_bytes, shard_bytes = sum(row.bytes for row in rows), sum(row.shard_bytes for row in rows)
  lines = [
    f"in memory   {all_bytes:,} bytes ({_human_bytes(all_bytes)}) once",
    f"mesh        {shape}: {mesh.size} device" + "s" * (mesh.size > 1),
    f"a device    {shard_bytes:,} bytes ({_human_bytes(shard_bytes)}) of weights, "
    f"{_human_bytes(shard_bytes * mesh.size)} on all of them",
  ]
  if any(row.indivisible for row in rows):
    lines.append("!           a dimension that the mesh does not divide is whole on each device")
  return lines


def _human_bytes(count: int) -> str:
  for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if count >= size:
      return f"{count / size:.2f} {unit}"
  return f"{count} B"


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the description of the model that the arguments name; returns the exit status."""

  def run() -> None:
    options = parse_arguments(sys.argv[1:] if argv is None else argv)
    print(inspect(options))

  return exit_status(run)


if __name__ == "__main__":
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may close the pipe
  sys.exit(main())
