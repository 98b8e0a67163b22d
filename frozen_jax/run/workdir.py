"""The workdir: whose run it holds, and where its files are.

A run that is not complete is compared further by its checkpoints, which know the digests of data
and the fingerprints of models. Of a complete one results.json holds these, under the keys of the
config that name data, models, adapters and corpora: what these names hold by now is compared.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frozen_jax.config.dependencies import changed, record
from frozen_jax.core.errors import UserError
from frozen_jax.core.files import write_json
from frozen_jax.core.object_store import AnyPath
from frozen_jax.data.sources import open_source
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.models.identity import encoder_identity, identified_model, lm_identity
from frozen_jax.pipelines.experiment import RunSettings, StageSettings
from frozen_jax.pipelines.load_adapter import stored_arrays
from frozen_jax.pipelines.table import PIPELINES
from frozen_jax.run.settings import resolve_run
from frozen_jax.sharding.checksum import checksum
from frozen_jax.sharding.hosts import barrier, gather_bytes, is_first_host
from frozen_jax.training.checkpoint_folders import CHECKPOINTS, how_to_train_on, newest_checkpoint
from frozen_jax.training.checkpoints import read_record, recorded_steps
from frozen_jax.training.metrics import METRICS

CONFIG, RESULTS = "config.json", "results.json"
PREDICTIONS, PLOT, BY_TASK = "predictions.jsonl", "report.png", "by_task.json"
ADAPTERS, EVALUATIONS = "adapters", "evaluations"

Digests = dict[str, str]

_SPLITS = ("train", "validation")

DURATIONS = ("train.steps", "train.epochs")


def claim(workdir: AnyPath, run: RunSettings) -> bool:
  """Writes config.json, or checks that the run which is there is this one.

  What its stages do not depend on may differ (`StageSettings.dependencies`), and so may the paths
  of equal data and models, and the number of steps where what is trained so far does not depend on
  it. Returns whether the run is complete. Raises UserError, naming the keys that differ, where the
  workdir holds a run of another config.
  """
  path = workdir / CONFIG
  barrier("config.json looked at")
  complete, goes_on = (workdir / RESULTS).exists(), False
  if path.exists() and _has_begun(workdir):
    stored = resolve_run(read_workdir_json(path))
    differing = _differing(run, stored, complete)
    if complete and not differing:
      results = read_workdir_json(workdir / RESULTS)
      differing = _other_data(run, stored, results.get("data", {}))
      differing += _other_inputs(run, stored, results.get("inputs", {}))
    remedy = ""
    if differing and set(differing) <= set(DURATIONS):
      remedy = _obstacle(workdir, run, stored, complete)
      differing, goes_on = (differing, False) if remedy else ([], True)
    check_same(workdir, differing, remedy)
  barrier("config.json compared")
  if is_first_host() and not complete:
    write_json(path, run.values)
  barrier("config.json written")
  return complete and not goes_on


def reopen(workdir: AnyPath, run: RunSettings) -> None:
  """Makes way for the results of a run that was complete and was trained on, with its config."""
  if is_first_host() and (workdir / RESULTS).exists():
    (workdir / RESULTS).unlink()
    write_json(workdir / CONFIG, run.values)


def check_same(workdir: AnyPath, differing: Sequence[str], remedy: str = "") -> None:
  """UserError, naming keys in which the run of the workdir differs, if there are any."""
  if differing:
    raise UserError(
      f"{workdir} holds a run of another config (different: {', '.join(differing[:5])});"
      f" {remedy or 'choose another --workdir, or remove that folder'}"
    )


def _differing(run: RunSettings, stored: RunSettings, complete: bool) -> list[str]:
  """The keys in which the stages of two runs differ; of complete ones also what they start from
  and what their pipelines make, which checkpoints and artifacts compare otherwise.
  """
  if [stage.name for stage in run.stages] != [stage.name for stage in stored.stages]:
    return ["stage_order"]
  keys: list[str] = []
  for stage, before in zip(run.stages, stored.stages, strict=True):
    keys += changed(stage.dependencies(), record(before.dependencies()))
    if complete:
      of_pipelines = changed(stage.pipelines, record(before.pipelines))
      keys += [key for key in of_pipelines if key not in _of_the_table(run)]
      links = changed(_links(stage), record(_links(before)))
      keys += [f"stages.{stage.name}.{key}" for key in links]
  if complete and run.init_from != stored.init_from:
    keys.append("init_from")
  return list(dict.fromkeys(keys))


def _of_the_table(run: RunSettings) -> list[str]:
  """The keys of pipelines on which nothing but the table depends (`scored_otherwise`)."""
  return [f"{name}.{key}" for name in run.pipelines for key in PIPELINES[name].scoring_fields]


def _links(stage: StageSettings) -> dict[str, dict[str, str]]:
  return {"init_from": dict(stage.init_from), "frozen_inputs": dict(stage.frozen_inputs)}


def scored_otherwise(workdir: AnyPath, run: RunSettings) -> list[str]:
  """The keys of how models are scored, in which a config differs from that of a complete run."""
  stored, now = read_workdir_json(workdir / CONFIG), run.values
  scoring = {section: now[section] for section in ("evaluate", "cascade")}
  for name in run.pipelines:
    scoring[name] = {key: now[name][key] for key in PIPELINES[name].scoring_fields}
  scoring["data"] = {key: now["data"][key] for key in ("test", "held_out")}
  keys = [
    f"{section}.{key}"
    for section, values in scoring.items()
    for key, value in values.items()
    if value != stored.get(section, {}).get(key, value)
  ]
  results = read_workdir_json(workdir / RESULTS)
  keys += [one for one in _other_test_data(run, results.get("inputs", {})) if one not in keys]
  return keys + [key for key in ("baseline", "gains") if now[key] != stored.get(key, now[key])]


def has_checkpoints(workdir: AnyPath, run: RunSettings) -> bool:
  """Whether a stage of the run has been trained there, be it in part; as the first host sees it."""
  found = any(newest_checkpoint(workdir, stage.name) for stage in run.running)
  return gather_bytes(b"1" if found else b"")[0] == b"1"


def _obstacle(workdir: AnyPath, run: RunSettings, stored: RunSettings, complete: bool) -> str:
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
      return how_to_train_on(workdir, stage.name)
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


def _has_begun(workdir: AnyPath) -> bool:
  """Whether anything of a run is there besides its config: a first try may have failed at once."""
  return any((workdir / name).exists() for name in (RESULTS, METRICS, CHECKPOINTS))


def read_workdir_json(path: AnyPath) -> dict[str, Any]:
  """A JSON object from the workdir; UserError where it is missing or damaged."""
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(f"{path} is missing; is {path.parent} the workdir of a run?") from None
  except ValueError as error:
    raise UserError(f"{path} is damaged ({error}); restore it or train again") from None


def data_digests(run: RunSettings) -> dict[str, Digests]:
  """{stage: {split: digest}} of the training and validation data that can be read by now."""
  digests: dict[str, Digests] = {}
  for stage in run.stages:
    digests[stage.name] = {}
    for split in _SPLITS:
      with contextlib.suppress(UserError):
        digests[stage.name][split] = _data_digest(*_named(stage, split))
  return digests


def input_digests(run: RunSettings, lm: FrozenLM) -> Digests:
  """{config key: digest} of all else that can be read by now: models, adapters, test data.

  lm: the run's, loaded.
  """
  return _digests({**_trained_from(run, lm), **_scored_on(run)})


def _other_data(
  run: RunSettings, stored: RunSettings, digests: Mapping[str, Mapping[str, str]]
) -> list[str]:
  """The keys of training and validation data whose contents are not those of the digests.

  stored: the run that these are of. Files that are gone by now count as unchanged under the same
  name, and are an error under another.
  """
  keys: list[str] = []
  for stage, before in zip(run.stages, stored.stages, strict=True):
    for split, digest in digests.get(stage.name, {}).items():
      now = _named(stage, split)
      try:
        same = _data_digest(*now) == digest
      except UserError:
        if now != _named(before, split):
          raise
        continue
      if not same:
        keys.append(f"data.{split}")
  return list(dict.fromkeys(keys))


def _other_inputs(run: RunSettings, stored: RunSettings, digests: Mapping[str, str]) -> list[str]:
  """The keys of models and adapters that are not those of the digests; as `_other_data`."""
  keys = []
  for key, read in _trained_from(run, None).items():
    try:
      same = key not in digests or digests[key] == read()
    except UserError:
      if _at(run.values, key) != _at(stored.values, key):
        raise
      continue
    if not same:
      keys.append(key)
  return keys


def _other_test_data(run: RunSettings, digests: Mapping[str, str]) -> list[str]:
  """The keys of data that are scored whose contents are not those of the digests, as far as they
  can be read.
  """
  found = _digests(_scored_on(run))
  return [key for key, digest in found.items() if digests.get(key, digest) != digest]


def _trained_from(run: RunSettings, lm: FrozenLM | None) -> dict[str, Callable[[], str]]:
  """What reads the digest of each model and adapter, and of what the pipelines read.

  lm: None if it is not loaded.
  """
  templates = tuple(dict.fromkeys(stage.data.template for stage in run.stages))
  encoder = None if lm is None else lm.encoder
  found: dict[str, Callable[[], str]] = {
    "model.name": lambda: lm_identity(lm or identified_model(run.model), templates)
  }
  if run.model.encoder and any(stage.reads_encoder for stage in run.stages):
    found["model.encoder"] = lambda: (
      encoder.texts_fingerprint if encoder else encoder_identity(run.model.encoder)
    )
  if run.init_from:
    found["init_from"] = lambda: str(checksum(stored_arrays(run.init_from)))
  for name, pipeline in PIPELINES.items():
    if name in run.pipelines:
      found |= pipeline.dependencies(run)
  return found


def _scored_on(run: RunSettings) -> dict[str, Callable[[], str]]:
  data = run.data

  def read(*specs: str) -> str:
    digests = [_data_digest(one, data.fields, data.templates) for one in specs]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()

  found = {"data.test": lambda: read(data.test)}
  if data.held_out:
    found["data.held_out"] = lambda: read(*data.held_out)
  return found


def _digests(readers: Mapping[str, Callable[[], str]]) -> Digests:
  """What the readers find; what cannot be read by now has none."""
  found = {}
  for key, read in readers.items():
    with contextlib.suppress(UserError):
      found[key] = read()
  return found


def _named(stage: StageSettings, split: str) -> tuple[str, tuple[str, ...], str]:
  """The data of a split as a config names them, with the fields and templates that apply."""
  data = stage.data
  return getattr(data, split), data.fields, data.templates


def _data_digest(spec: str, fields: tuple[str, ...], templates: str) -> str:
  return open_source(spec, fields, templates=templates).digest


def _at(values: Any, key: str) -> Any:
  for name in key.split("."):
    values = values.get(name) if isinstance(values, Mapping) else None
  return values
