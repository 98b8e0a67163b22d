"""What can be known to be wrong from the config and small files, before any weight is read.

Every host checks it, so the first one says it and none waits for the others.
"""

from frozen_jax.core.errors import UserError
from frozen_jax.data.sources import open_source
from frozen_jax.pipelines.experiment import RunSettings
from frozen_jax.pipelines.load_adapter import read_stored
from frozen_jax.text.templates import make_template


def check_given(run: RunSettings) -> None:
  """Opens the data, the templates and `init_from` of a run that is to train.

  A pipeline checks by itself what its stages read. Raises UserError for what is wrong.
  """
  if not run.running:
    raise UserError("every stage has 0 steps; give at least one stage of config.stage_order some")
  if run.init_from:
    read_stored(run.init_from)
  for stage in run.running:
    make_template(stage.data.template)
  if run.pipelines:
    return
  for number, stage in enumerate(run.running):
    before = [one.name for one in run.running[:number]]
    missing = [
      name for name, link in stage.frozen_inputs.items() if link.partition("/")[0] not in before
    ]
    if missing and not run.init_from:
      raise missing_input(stage.name, missing)
  opened = []
  last = run.running[-1]
  for stage in run.running:
    data = stage.data
    tests = (data.test,) if stage is last else ()
    for spec in (data.train, data.validation, *data.held_out, *tests):
      wanted = (spec, data.fields, data.templates)
      if wanted not in opened:
        open_source(spec, data.fields, templates=data.templates)
        opened.append(wanted)


def missing_input(stage: str, names: list[str]) -> UserError:
  """The error of a stage whose frozen inputs come from nowhere."""
  return UserError(
    f"stage {stage} reads {', '.join(names)} as a frozen input, but the stage that tunes"
    " it does not run and init_from has none; give one of them, or"
    f" --config.stages.{stage}.frozen_inputs='()'"
  )
