"""Rows stay where they are: what devices exchange is small, and does not grow with their number.

The programs are compiled for eight simulated devices, and their collectives are read from the
compiled text.
"""

import functools

import jax
import pytest

from frozen_jax.backbones import kernels
from frozen_jax.backbones.kernels import Kernel
from frozen_jax.methods import METHODS
from frozen_jax.run.settings import resolve_run
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.tools.abstract_stage import AbstractStage
from frozen_jax.tools.model_sizes import find_models
from frozen_jax.tools.pod_plan.hlo import read_program
from frozen_jax.tools.pod_plan.programs import Programs, Sizes
from frozen_jax.tools.pod_plan.roofline import collectives as find_collectives

pytestmark = [
  pytest.mark.program,
  pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices"),
]

# Weights are smaller than activations, as on a pod.
LM = {
  "vocab_size": 128,
  "width": 64,
  "layers": 2,
  "heads": 4,
  "kv_heads": 2,
  "head_dim": 16,
  "mlp_width": 96,
}
ENCODER = {
  "vocab_size": 64,
  "width": 48,
  "layers": 2,
  "heads": 3,
  "head_dim": 16,
  "mlp_width": 64,
  "context": 128,
}
ROWS, LENGTH, TARGETS = 16, 128, 4
ACTIVATION = ROWS * LENGTH * LM["width"] * 4  # bytes of all rows, float32
MESHES = ({"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}, {"data": 8})
TRAINED = sorted(METHODS.keys() - {"zero_shot", "textual_recursion"})


def programs(method, sizes, remat="none", rows=ROWS):
  config = {
    "stage_order": (method,),
    "stages": {method: {"method": method}},
    "model": {
      "sizes": LM,
      "encoder_sizes": ENCODER if method == "id_pt" else {},
      "encoder": "e" if method == "id_pt" else "",
      "remat": remat,
    },
    "data": {"lengths": (LENGTH,)},
    "prompt": {"text": "", "length": 8},
  }
  if method == "neural_recursion":
    config["recursion"] = {"first_prompt": "none", "connector": {"width": 32, "heads": 2}}
  if method == "id_pt":
    config["generator"] = {"p_prime_length": 4, "width": 32, "heads": 2}
  run = resolve_run(config)
  stage, models = AbstractStage.of(run, method), find_models(run.model)
  if not stage.traits(models)[1]:
    models = models.without_encoder()
  return Programs(stage, models, make_mesh(**sizes), Sizes(rows, LENGTH, TARGETS, 8))


def collectives(lowered):
  """The bytes of each array that devices exchange; several may go together."""
  found = find_collectives(read_program(lowered.compile().as_text()))
  return [array.nbytes for _, operation in found for array in operation.outputs]


@functools.cache
def of_a_training_step(method, mesh, remat="none", rows=ROWS):
  """The `collectives` of a training step; `mesh`: pairs of axis and size."""
  return collectives(programs(method, dict(mesh), remat, rows).train_step())


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("method", TRAINED)
def test_no_collective_of_a_training_step_is_as_large_as_an_activation(method, mesh):
  remat = "full" if mesh == MESHES[0] else "none"
  found = of_a_training_step(method, tuple(mesh.items()), remat)
  assert max(found) < ACTIVATION / 2


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("method", ["zero_shot", *TRAINED])
def test_no_collective_of_generation_is_as_large_as_an_activation(method, mesh):
  given = programs(method, mesh)
  assert max(collectives(given.prefill()), default=0) < ACTIVATION / 2
  cache = ROWS * LENGTH * LM["kv_heads"] * LM["head_dim"] * 4  # keys of a layer
  assert max(collectives(given.decode_step()), default=0) < cache / 2


def test_moving_the_padding_for_a_kernel_exchanges_no_activation(monkeypatch):
  kernel = Kernel("cudnn", interpret=True)
  monkeypatch.setattr(kernels, "of_decoder", lambda *_: kernel)
  given = programs("prompt_tuning", MESHES[1])
  for lowered in (given.train_step(), given.prefill()):
    assert max(collectives(lowered)) < ACTIVATION / 2


@pytest.mark.parametrize("method", TRAINED)
def test_what_a_device_exchanges_does_not_grow_with_the_devices(method):
  """With as many rows a device, on meshes that differ in `data` alone."""

  def exchanged(data):
    return sum(of_a_training_step(method, (("data", data),), rows=2 * data))

  assert exchanged(8) < 1.2 * exchanged(2) + 1e4
