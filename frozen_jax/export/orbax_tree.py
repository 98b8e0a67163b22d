"""The trained tree as an Orbax checkpoint, for programs in JAX.

tree/        the checkpoint: {"trained": ..., "frozen_inputs"?: ...}, float32
orbax.json   what it is, its layout, and the digest of each file (`manifest`)
"""

import pathlib

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from frozen_jax.core.errors import UserError
from frozen_jax.export.about import about_model, adapter_tree, layout
from frozen_jax.export.manifest import write_manifest
from frozen_jax.models.tuned_model import TunedModel

CHECKPOINT = "tree"


def write_orbax(folder: pathlib.Path, model: TunedModel) -> None:
  """Writes the trees into a folder that has none yet.

  Raises UserError where nothing is trained.
  """
  tree = adapter_tree(model)
  if not tree:
    raise UserError(f"{model.method.name} trains nothing, so there is no tree to export")
  context = ocp.Context()
  context.asynchronous.create_directories_asynchronously = False
  try:
    with context:  # numpy's arrays: they can be read on any devices
      ocp.save((folder / CHECKPOINT).absolute(), jax.tree.map(np.asarray, tree))
  except ValueError as error:  # tensorstore's, of a full disk too
    raise OSError(str(error).splitlines()[0][:200]) from error
  write_manifest(folder, "orbax", {**about_model(model), "checkpoint": layout(tree)})
