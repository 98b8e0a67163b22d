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
MESHES = ({"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}, {"data": 8})
NOTHING_TRAINED = ["looped", "recirculation", "zero_shot"]
TRAINED = sorted(METHODS.keys() - {*NOTHING_TRAINED, "textual_recursion"})
# With networks of their own, or with trained weights: on every mesh. The others on the first.
ON_EVERY_MESH = ("fine_tuning", "id_pt", "neural_recursion", "zero_shot")


def each_on_meshes(methods):
  """Parametrises a test by method and mesh."""
  cases = [
    pytest.param(method, mesh, id=f"{method}-{mesh}")
    for method in methods
    for mesh in (MESHES if method in ON_EVERY_MESH else MESHES[:1])
  ]
  return pytest.mark.parametrize(("method", "mesh"), cases)


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


def collectives(compiled):
  """The bytes of each array that devices exchange; several may go together."""
  found = find_collectives(read_program(compiled.as_text()))
  return [array.nbytes for _, operation in found for array in operation.outputs]


@functools.cache
def of_a_training_step(method, mesh, remat, rows):
  """The `collectives` of a training step; `mesh`: pairs of axis and size."""
  return collectives(programs(method, dict(mesh), remat, rows).all()["train_step"]())


@each_on_meshes(TRAINED)
def test_no_collective_of_a_training_step_is_as_large_as_an_activation(method, mesh):
  remat = "full" if mesh == MESHES[0] else "none"
  found = of_a_training_step(method, tuple(mesh.items()), remat, ROWS)
  assert max(found) < ACTIVATION / 2


@each_on_meshes([*NOTHING_TRAINED, *TRAINED])
def test_no_collective_of_generation_is_as_large_as_an_activation(method, mesh):
  compiled = programs(method, mesh).all()
  assert max(collectives(compiled["prefill"]()), default=0) < ACTIVATION / 2
  cache = ROWS * LENGTH * LM["kv_heads"] * LM["head_dim"] * 4  # keys of a layer
  assert max(collectives(compiled["decode_step"]()), default=0) < cache / 2


def test_moving_the_padding_for_a_kernel_exchanges_no_activation(monkeypatch):
  kernel = Kernel("cudnn", interpret=True)
  monkeypatch.setattr(kernels, "of_decoder", lambda *_: kernel)
  compiled = programs("prompt_tuning", MESHES[0]).all()
  for name in ("train_step", "prefill"):
    assert max(collectives(compiled[name]())) < ACTIVATION / 2


@pytest.mark.parametrize("method", TRAINED)
def test_what_a_device_exchanges_does_not_grow_with_the_devices(method):
  """With as many rows a device, on meshes that differ in `data` alone."""

  def exchanged(data):
    return sum(of_a_training_step(method, (("data", data),), "none", 2 * data))

  assert exchanged(8) < 1.2 * exchanged(2) + 1e4
