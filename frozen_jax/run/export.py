"""Export: the adapter of a finished run in a form that other tools load."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frozen_jax.backbones import hub
from frozen_jax.config.section import section_values
from frozen_jax.core.errors import UserError
from frozen_jax.core.files import check_writable, filled_folder
from frozen_jax.core.object_store import AnyPath, StorePath
from frozen_jax.core.user_path import user_path
from frozen_jax.export import merged, peft
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.pipelines.load_adapter import read_stored
from frozen_jax.run import workdir
from frozen_jax.run.evaluate import open_run
from frozen_jax.run.interrupt import check, stoppable
from frozen_jax.run.model_card import CARDS, model_card
from frozen_jax.run.report import say
from frozen_jax.run.settings import compiled_as_asked, resolve_run
from frozen_jax.sharding.hosts import is_first_host
from frozen_jax.text.templates import make_template


@compiled_as_asked
def export(config: Any, folder: str | AnyPath) -> dict[str, str]:
  """Writes the adapter of a complete run to `export.folder` (default: WORKDIR/export).

  Raises UserError for an adapter that the format has no form for, Interrupted when SIGTERM or
  SIGINT came: an export is written as a whole.
  """
  with stoppable():
    return _export(config, user_path(folder))


def _export(config: Any, folder: AnyPath) -> dict[str, str]:
  run = resolve_run(config)
  settings = run.values["export"]
  target, name = user_path(settings["folder"] or folder / "export"), settings["format"]
  write, reader = FORMATS[name]
  repository = settings["push"]
  if repository and isinstance(target, StorePath):
    raise UserError(f"an export is pushed from a local folder, and {target} is none; give another")
  if name == "peft" and run.model.num_layers:
    raise UserError(
      f"PEFT loads whole models, and this run is on the first {run.model.num_layers} layers of one"
      " (model.num_layers); train on all of them"
    )
  if name == "merged":
    merged.check_base(run.model, target)
  tree, info = read_stored(folder)
  parts = {**tree.get("trained", {}), **tree.get("frozen_inputs", {})}
  if name in _CHECKS:
    _CHECKS[name](info, parts)
  check_writable(target)
  _, model = open_run(config, folder)
  check()
  if is_first_host():
    with filled_folder(target, _REPLACED.get(name, ())) as new:
      write(new, model)
      if name in CARDS:
        data = section_values(run.stages[-1].data)
        card = model_card(name, model, data, _record(folder), _in_peft(info, parts))
        (new / "README.md").write_text(card, encoding="utf-8")
      names = [file.relative_to(new).as_posix() for file in new.rglob("*") if file.is_file()]
  say(f"The adapter is in {target}, for {reader}.")
  if repository and is_first_host() and isinstance(target, pathlib.Path):
    say(f"It is pushed: {hub.push(target, repository, names, _REPLACED.get(name, ()))}")
  return {"folder": str(target), "format": name}


def _record(folder: AnyPath) -> dict[str, Any]:
  """What results.json of the run holds; {} for an exported adapter, which has none."""
  path = folder / workdir.RESULTS
  return workdir.read_workdir_json(path) if path.exists() else {}


def _in_peft(info: Mapping[str, Any], parts: Mapping[str, Any]) -> bool:
  try:
    _CHECKS["peft"](info, parts)
  except UserError:
    return False
  return True


def _write_adapter(target: pathlib.Path, model: TunedModel) -> None:
  model.save(target)


def _write_peft(target: pathlib.Path, model: TunedModel) -> None:
  base, template = peft.base_model(model.lm.name), make_template(model.inputs.template)
  peft.write_peft(target, peft.peft_adapter(model), base, template)


# What writes each format, and what reads it.
FORMATS: dict[str, tuple[Callable[[pathlib.Path, TunedModel], None], str]] = {
  "adapter": (_write_adapter, "frozen_jax.load_adapter"),
  "peft": (_write_peft, "PEFT: its README.md says how"),
  "merged": (merged.write_merged, "transformers.AutoModelForCausalLM"),
}
# Of a format that cannot hold every method: UserError for (description, parts by name), before the
# LM is read.
_CHECKS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], None]] = {
  "peft": peft.check_peft,
  "merged": merged.check_merged,
}
# Of a format of files that belong together: the names of an older export that go before a new one.
_REPLACED: dict[str, Sequence[str]] = {"merged": merged.WEIGHTS}
