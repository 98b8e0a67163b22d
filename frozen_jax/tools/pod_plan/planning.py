"""From a config, a topology and a mesh to the plan of its programs; and the search for a mesh."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.core.errors import UserError
from frozen_jax.core.flop_count import flops
from frozen_jax.core.progress import ProgressBar
from frozen_jax.core.types import Tree
from frozen_jax.pipelines.experiment import RunSettings
from frozen_jax.tools.abstract_stage import AbstractStage, target_shapes
from frozen_jax.tools.model_sizes import Models, find_models
from frozen_jax.tools.pod_plan.chips import chip_of
from frozen_jax.tools.pod_plan.plan import ProgramPlan, plan_program
from frozen_jax.tools.pod_plan.programs import Programs, Sizes, stage_prompts, whole_rows
from frozen_jax.tools.pod_plan.topology import topology_mesh

MAX_TENSOR = 16  # of the meshes that a sweep tries
ROWS_PER_GROUP = (1, 2, 4)  # and of the batches
# What a sweep may rank by, and the programs of it.
WORKS = {"training": ("train_step",), "decoding": ("prefill", "decode_step")}


@dataclasses.dataclass(frozen=True)
class Request:
  """What to plan: a stage of a config's run on a topology, with the sizes of a batch.

  mesh: the size of each axis, 0 for what the others leave. rows: raised to a multiple of the groups
  that the mesh splits them into. targets: of a row.
  """

  config: str
  run: RunSettings
  stage: str
  topology: str
  mesh: Mapping[str, int]
  rows: int
  targets: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """The plan of a stage's programs on a mesh."""

  request: Request
  mesh: Mapping[str, int]
  sizes: Sizes
  programs: tuple[ProgramPlan, ...]

  @property
  def fits(self) -> bool:
    """Whether each program fits into the memory of a chip."""
    return all(program.fits for program in self.programs)

  def fits_for(self, work: str) -> bool:
    """Whether the programs of one of `WORKS` fit."""
    return all(program.fits for program in self.programs if program.name in WORKS[work])

  def program(self, name: str) -> ProgramPlan | None:
    """The program of this name; None where the method has none."""
    return next((program for program in self.programs if program.name == name), None)

  @property
  def tokens_per_second(self) -> float:
    """New tokens of all rows, at most; 0 where the decoding step does not fit the compiler."""
    step = self.program("decode_step")
    longest = max(step.seconds.values()) if step else 0.0
    return self.sizes.rows / longest if longest else 0.0

  @property
  def chips(self) -> int:
    product = 1
    for size in self.mesh.values():
      product *= size
    return product

  @property
  def cache_bytes(self) -> float:
    """Bytes a chip of what decoding keeps of the rows: what its step is given and a prefill not."""
    given = {one.name: one.bytes_per_chip.get("arguments", 0.0) for one in self.programs}
    return max(given.get("decode_step", 0.0) - given.get("prefill", 0.0), 0.0)

  def record(self) -> dict[str, Any]:
    """The plan as JSON values."""
    return {
      "config": self.request.config,
      "stage": self.request.stage,
      "topology": self.request.topology,
      "chips": self.chips,
      "mesh": dict(self.mesh),
      **dataclasses.asdict(self.sizes),
      "cache_bytes_per_chip": self.cache_bytes,
      "programs": [program.record() for program in self.programs],
    }


def plan_run(request: Request) -> Plan:
  """The plan of a request.

  Raises:
    UserError: an unknown topology, a mesh that it cannot have, a model that cannot be planned.
  """
  chip, mesh = chip_of(request.topology), topology_mesh(request.topology, request.mesh)
  stage = AbstractStage.of(request.run, request.stage)
  models = find_models(request.run.model)
  if not stage.traits(models)[1]:
    models = models.without_encoder()
  sizes = Sizes(
    rows=whole_rows(request.rows, mesh),
    length=stage.settings.data.lengths[-1],
    targets=request.targets,
    max_new_tokens=request.run.evaluate.max_new_tokens,
  )
  counted = {name: count / mesh.size for name, count in model_flops(stage, models, sizes).items()}
  wanted = Programs(stage, models, mesh, sizes).all()
  plans = []
  with ProgressBar(total=len(wanted), desc="compile", unit="program", delay=2) as bar:
    for name, compile_program in wanted.items():
      plans.append(plan_program(name, compile_program, chip, counted[name]))
      bar.update(1)
  return Plan(request, dict(mesh.shape), sizes, tuple(plans))


def model_flops(stage: AbstractStage, models: Models, sizes: Sizes) -> dict[str, float]:
  """FLOPs of each program for the whole batch, with nothing computed twice, by its name."""
  settings = dataclasses.replace(
    stage.settings, model=dataclasses.replace(stage.settings.model, remat="none")
  )
  stage = dataclasses.replace(stage, settings=settings)
  prompts = stage_prompts(stage, models, 1, sizes.length)
  batch = prompts | target_shapes(1, sizes.targets)

  def gradient(method: Any, trained: Tree, frozen: Tree) -> Tree:
    return jax.value_and_grad(method.loss, has_aux=True)(trained, frozen, batch_of(batch), None)

  def reading(method: Any, trained: Tree, frozen: Tree) -> Tree:
    return method.prefill(trained, frozen, batch_of(prompts), 0, 0)[0]

  def step(method: Any, trained: Tree, frozen: Tree) -> Tree:
    slots = sizes.max_new_tokens
    state = method.prefill(trained, frozen, batch_of(prompts), slots, slots)[1]
    return method.decode(trained, frozen, jnp.zeros(1, jnp.int32), state)[0]

  def batch_of(shapes: Tree) -> Tree:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

  def counted(program: Any) -> float:
    run = lambda trained, frozen: program(stage.method(models, frozen), trained, frozen)
    return sizes.rows * flops(run, stage.trained(models), stage.frozen(models))

  found = {"train_step": counted(gradient), "prefill": counted(reading)}
  return found | {"decode_step": counted(step) - found["prefill"]}


def sweep(request: Request, work: str = "training") -> list[Plan]:
  """The plans of the topology's meshes and batch sizes, the best one for this work first.

  work: "training", ranked by the MFU of a step, or "decoding", ranked by new tokens a second. What
  fits stands first. Meshes that the topology cannot have are left out.

  Raises:
    UserError: none of them can be planned, or there is nothing to train.
  """
  stage = AbstractStage.of(request.run, request.stage)
  if work == "training" and not jax.tree.leaves(stage.trained(find_models(request.run.model))):
    raise UserError(f"stage {request.stage} trains nothing; give --sweep=decoding")
  plans, refused = [], None
  candidates = list(_candidates(request))
  with ProgressBar(total=len(candidates), desc="sweep", unit="mesh", delay=2) as bar:
    for candidate in candidates:
      try:
        plans.append(plan_run(candidate))
      except UserError as error:
        refused = error
      bar.update(1)
  if not plans and refused:
    raise refused
  return ranked(plans, work)


def ranked(plans: Iterable[Plan], work: str) -> list[Plan]:
  """The plans in the order of `sweep`."""

  def rate(plan: Plan) -> float:
    step = plan.program("train_step")
    return step.mfu if work == "training" and step else plan.tokens_per_second

  return sorted(plans, key=lambda plan: (not plan.fits_for(work), -rate(plan)))


def _candidates(request: Request) -> Iterator[Request]:
  chips = topology_mesh(request.topology, {"data": 1, "fsdp": 0, "tensor": 1}).size
  for tensor in (2**n for n in range(MAX_TENSOR.bit_length())):
    if chips % tensor:
      continue
    groups = chips // tensor
    for data in (n for n in (1, 2, 4) if groups % n == 0):
      mesh = {"data": data, "fsdp": groups // data, "tensor": tensor}
      for rows in ROWS_PER_GROUP:
        yield dataclasses.replace(request, mesh=mesh, rows=rows * groups)
