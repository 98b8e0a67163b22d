"""More steps than a run was to have: which of its stages can be trained on, and why not."""

import pathlib
from collections.abc import Sequence

from frozen_jax.pipelines.experiment import RunSettings, StageSettings
from frozen_jax.training.checkpoint_folders import how_to_train_on, newest_checkpoint
from frozen_jax.training.checkpoints import read_record, recorded_steps


def obstacle(workdir: pathlib.Path, run: RunSettings, stored: RunSettings, complete: bool) -> str:
  """Why the run of a workdir cannot have this other number of steps, and what to do; "": it can.

  run, stored: the config that is given and that of the workdir, which differ in steps or epochs
  alone. complete: whether the run there is. Where there are epochs, how many steps they are shows
  when the data are read, and the training loop compares that.
  """
  for number, (stage, before) in enumerate(zip(run.stages, stored.stages, strict=True)):
    if (stage.train.steps, stage.train.epochs) == (before.train.steps, before.train.epochs):
      continue
    checkpoint = newest_checkpoint(workdir, stage.name)
    if checkpoint is None:
      if complete:
        return "choose another --workdir, or remove that folder"
      continue
    record = read_record(checkpoint)
    if stage.train.steps and stage.train.steps == recorded_steps(record):
      continue
    if not stage.train.same_until(record["step"]):
      return how_to_train_on(workdir)
    if not stage.train.trains or 0 < stage.train.steps <= record["step"]:
      return f"step {record['step']} of stage {stage.name} is done; choose another --workdir"
    for later in run.stages[number + 1 :]:
      if newest_checkpoint(workdir, later.name) and (
        run.pipelines or _builds_on(later, stage, run.stages)
      ):
        return (
          f"stage {later.name} has begun from what stage {stage.name} had trained; choose another"
          " --workdir"
        )
  return ""


def _builds_on(later: StageSettings, stage: StageSettings, stages: Sequence[StageSettings]) -> bool:
  """Whether a stage starts from what another one trained, or reads it, also by way of others."""
  links = (*later.init_from.values(), *later.frozen_inputs.values())
  names = {link.partition("/")[0] for link in links}
  order = [one.name for one in stages]
  between = stages[order.index(stage.name) + 1 : order.index(later.name)]
  return stage.name in names or any(
    one.name in names and _builds_on(one, stage, stages) for one in between
  )
