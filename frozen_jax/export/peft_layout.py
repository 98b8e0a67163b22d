"""Trained arrays in the layouts of PEFT, and back; numpy alone. llama.cpp's has the same matrices.

prefix   PEFT stores a row for each of P positions: [P, 2 L K C], of each layer its key, then its
         value. Ours are k and v, each [L, P, K, C].
LoRA     PEFT stores two matrices for each module of each layer: A [R, in] and B [out, R]. Ours are
         a [L, in, r] and b [L, r, out] for each product, by the names that all families share.

Where a module is fused (GPT-2's `c_attn` holds queries, keys and values), its products have an
update each here, and PEFT has one for the module. Both ways are exact. Products whose `a` are equal
share the rows of A. Others get rows of their own in an A of so many times the rank, and B is zero
where they do not meet; all modules then get that rank, as zeros, and alpha grows with it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from frozen_jax.backbones import assemble
from frozen_jax.backbones.families import Format, family_of
from frozen_jax.backbones.gguf_file import unpermute
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.methods.lora import product_names

_PREFIX = "base_model.model."
Tensors = dict[str, np.ndarray]


class Product(NamedTuple):
  """A product of one layer within a module, which is one stored matrix.

  target: its name here ("attn/q"). inputs, outputs: of the module. places: where the product's
  outputs are among the module's, [out]. conv: the module stores its matrix [in, out].
  """

  target: str
  layer: int
  inputs: int
  outputs: int
  places: Int[np.ndarray, "out"]
  conv: bool


Modules = dict[str, list[Product]]  # by the module's name: of its tensor, without ".weight"


def modules_of(config: Any, family: str, form: Format = "hf") -> Modules:
  """The modules of a decoder that LoRA can update.

  Args:
    config: the decoder's.
    family: the model type that transformers knows it by.
    form: whose modules, with their names and the order of their outputs: transformers' or
      llama.cpp's.
  """
  leaves = assemble.plan_leaves(config, family_of(family, "hf", "the frozen model"), form)
  by_path = {leaf.path: leaf for leaf in leaves}
  modules: Modules = {}
  for target in product_names(by_path):
    leaf = by_path[f"layers/{target}/kernel"]
    inputs, outputs = leaf.slice_shape
    places = np.arange(outputs) if leaf.fused is None else leaf.fused.within(np.arange(outputs))
    if leaf.source.permuted:
      places = unpermute(places, getattr(config, leaf.source.permuted))
    total = leaf.stored_shape[leaf.out_axis]
    for layer, name in enumerate(leaf.names):
      product = Product(target, layer, inputs, total, places, not leaf.source.transpose)
      modules.setdefault(name.removesuffix(".weight"), []).append(product)
  return modules


def lora_tensors(updates: Mapping[str, Any], modules: Modules) -> tuple[Tensors, int]:
  """Updates {BLOCK: {NAME: {"a", "b"}}} -> PEFT's tensors, and by how much rank and alpha grow."""
  matrices, growth = lora_matrices(updates, modules)
  tensors = {
    f"{_PREFIX}{name}.lora_{kind}.weight": matrix
    for name, both in matrices.items()
    for kind, matrix in zip("AB", both, strict=True)
  }
  return tensors, growth


def lora_matrices(
  updates: Mapping[str, Any], modules: Modules
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int]:
  """Updates {BLOCK: {NAME: {"a", "b"}}} -> A [R, in] and B [out, R] of each updated module.

  And by how much rank and alpha grow.
  """
  leaves = {path: np.asarray(leaf, np.float32) for path, leaf in paths.flatten(updates).items()}
  by_module: dict[str, list[_Update]] = {}
  for name, products in modules.items():
    updated = [one for one in products if f"{one.target}/a" in leaves]
    if updated:
      by_module[name] = [
        _Update(one, *(leaves[f"{one.target}/{kind}"][one.layer] for kind in "ab"))
        for one in updated
      ]
  growth = max(1 if _share_rows(found) else len(found) for found in by_module.values())
  matrices = {}
  for name, found in by_module.items():
    product, rank = found[0].product, found[0].a.shape[1]
    first = np.zeros((growth * rank, product.inputs), np.float32)
    second = np.zeros((product.outputs, growth * rank), np.float32)
    for number, (product, a, b) in enumerate(found):
      start = 0 if _share_rows(found) else number * rank
      first[start : start + rank] = a.T
      second[product.places, start : start + rank] = b.T
    matrices[name] = first, second
  return matrices, growth


class _Update(NamedTuple):
  """The update of a product of one layer: a [in, r], b [r, out]."""

  product: Product
  a: np.ndarray
  b: np.ndarray


def _share_rows(found: list[_Update]) -> bool:
  return all(np.array_equal(found[0].a, one.a) for one in found)


def target_modules(tensors: Tensors, modules: Modules) -> list[str]:
  """The shortest names by which PEFT finds the updated modules and no other of these.

  PEFT takes each module whose name is such a name, or ends in a dot and it.
  """
  updated = {name for name in modules if f"{_PREFIX}{name}.lora_A.weight" in tensors}
  others = [f".{name}" for name in modules.keys() - updated]
  found = set()
  for name in updated:
    parts = name.split(".")
    endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
    found.add(next(one for one in endings if not any(o.endswith(f".{one}") for o in others)))
  return sorted(found)


def lora_updates(tensors: Tensors, rank: int, modules: Modules, where: str) -> dict[str, Any]:
  """PEFT's tensors -> updates {BLOCK: {NAME: {"a", "b"}}}, float32.

  Raises UserError for a module that the model does not have or that cannot be updated here, for
  shapes that are not its, and for a product that is updated in some layers only.
  """
  found: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
  for name in sorted({_module_name(name, where) for name in tensors}):
    if name not in modules:
      known = ", ".join(sorted({one.rpartition(".")[2] for one in modules}))
      raise UserError(
        f"{where} updates {name}, which this reader cannot update in this model; it can {known}"
      )
    first, second = (tensors.get(f"{_PREFIX}{name}.lora_{kind}.weight") for kind in "AB")
    if first is None or second is None:
      raise UserError(f"{where} has but one of lora_A and lora_B of {name}; get the file again")
    for one in modules[name]:
      expected = (rank, one.inputs), (one.outputs, rank)
      if (first.shape, second.shape) != expected:
        raise UserError(
          f"{where} updates {name} by arrays {list(first.shape)} and {list(second.shape)}, and this"
          f" model takes {list(expected[0])} and {list(expected[1])}: load the model it was"
          " trained on"
        )
      found.setdefault(one.target, {})[one.layer] = (first.T, second[one.places].T)
  layers = max((one.layer for products in modules.values() for one in products), default=-1) + 1
  partly = [target for target, of_layers in found.items() if len(of_layers) < layers]
  if partly or not found:
    raise UserError(
      f"{where} updates {', '.join(partly) or 'nothing'} in some of the {layers} layers only;"
      " updates of all layers can be read"
    )
  return paths.unflatten(
    {
      f"{target}/{kind}": np.stack([of_layers[layer][index] for layer in range(layers)])
      for target, of_layers in sorted(found.items())
      for index, kind in enumerate("ab")
    }
  )


def _module_name(tensor: str, where: str) -> str:
  for ending in (".lora_A.weight", ".lora_B.weight"):
    if tensor.startswith(_PREFIX) and tensor.endswith(ending):
      return tensor.removeprefix(_PREFIX).removesuffix(ending)
  raise UserError(
    f"{where} holds {tensor!r}, which is no low-rank update of a linear layer; only these are read"
  )


def prefix_rows(
  k: Float[Any, "L P K C"], v: Float[Any, "L P K C"]
) -> Float[np.ndarray, "P numbers"]:
  """A prefix as PEFT stores it."""
  both = np.stack([np.asarray(k, np.float32), np.asarray(v, np.float32)], axis=1)
  rows = both.transpose(2, 0, 1, 3, 4)  # [P, L, 2, K, C]
  return np.ascontiguousarray(rows.reshape(len(rows), -1))


def prefix_of_rows(rows: Float[np.ndarray, "P numbers"], config: Any) -> dict[str, np.ndarray]:
  """`prefix_rows` undone for a decoder of this config: {"k", "v"}, each [L, P, K, C]."""
  split = rows.reshape(len(rows), config.layers, 2, config.kv_heads, config.head_dim)
  k, v = np.ascontiguousarray(split.transpose(2, 1, 0, 3, 4))
  return {"k": k, "v": v}
