"""Export: the adapter of a finished run in a form that other tools load."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from frozen_jax.backbones import fetch, hub
from frozen_jax.config.section import section_values
from frozen_jax.core.errors import UserError
from frozen_jax.core.files import check_writable, filled_folder, folder_bytes
from frozen_jax.core.object_store import AnyPath, StorePath
from frozen_jax.core.user_path import user_path
from frozen_jax.data.examples import Example
from frozen_jax.export import merged, peft
from frozen_jax.export.gguf_lora import check_gguf_lora, write_gguf_lora
from frozen_jax.export.orbax_tree import write_orbax
from frozen_jax.export.prompt_embeds import check_prompt_embeds, write_prompt_embeds
from frozen_jax.export.stablehlo import write_stablehlo
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.pipelines.load_adapter import read_stored
from frozen_jax.pipelines.retrieve_read import re_ranker_export
from frozen_jax.run import workdir
from frozen_jax.run.evaluate import open_run
from frozen_jax.run.interrupt import check, stoppable
from frozen_jax.run.predict import given_questions, open_predictor
from frozen_jax.run.results.model_card import CARDS, model_card
from frozen_jax.run.results.report import say
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
  repository = settings["push"]
  _check_place(name, repository, target)
  _check_unused(target, folder, run.model.name)
  if name == RE_RANKER:
    return _export_re_ranker(folder, target, repository)
  write, reader = FORMATS[name]
  if name in _OF_WHOLE_MODELS and run.model.num_layers:
    raise UserError(
      f"{_OF_WHOLE_MODELS[name]} loads whole models, and this run is on the first"
      f" {run.model.num_layers} layers of one (model.num_layers); train on all of them"
    )
  if name == "merged":
    merged.check_base(run.model)
  tree, info = read_stored(folder)
  parts = {**tree.get("trained", {}), **tree.get("frozen_inputs", {})}
  if name in _CHECKS:
    _CHECKS[name](info, parts)
  asked = given_questions(run, folder) if name in _OF_QUESTIONS else None
  check_writable(target)
  if asked is None:
    _, model = open_run(config, folder)
  else:
    predictor = open_predictor(config, folder)
    model = predictor.model
    write = functools.partial(write, examples=predictor.inputs(*asked))
  check()
  sizes: list[str] = []
  if is_first_host():
    with filled_folder(target, _REPLACED.get(name, ())) as new:
      write(new, model)
      if name in CARDS:
        data = section_values(run.stages[-1].data)
        card = model_card(name, model, data, _record(folder), _in_peft(info, parts))
        (new / "README.md").write_text(card, encoding="utf-8")
      if name in _OF_ONE_PROCESS:
        sizes = [f"  {one.name}: {folder_bytes(one):,} bytes" for one in sorted(new.iterdir())]
      names = [file.relative_to(new).as_posix() for file in new.rglob("*") if file.is_file()]
  say(f"The adapter is in {target}, for {reader}.", *sizes)
  _push(target, repository, names, _REPLACED.get(name, ()))
  return {"folder": str(target), "format": name}


def _export_re_ranker(folder: AnyPath, target: AnyPath, repository: str) -> dict[str, str]:
  """The export that is not of the run's last stage and needs no LM."""
  check_writable(target)
  names: list[str] = []
  if is_first_host():
    with filled_folder(target, re_ranker_export.REPLACED) as new:
      re_ranker_export.write_re_ranker(new, folder)
      names = [file.relative_to(new).as_posix() for file in new.rglob("*") if file.is_file()]
  say(f"The re-ranker is in {target}, for sentence-transformers: its README.md says how.")
  _push(target, repository, names, re_ranker_export.REPLACED)
  return {"folder": str(target), "format": RE_RANKER}


def _push(target: AnyPath, repository: str, names: Sequence[str], replaced: Sequence[str]) -> None:
  """Pushes the files of an export to `export.push`, if that names a repository."""
  if repository and is_first_host() and isinstance(target, pathlib.Path):
    say(f"It is pushed: {hub.push(target, repository, names, replaced)}")


def _check_place(name: str, repository: str, target: AnyPath) -> None:
  """UserError where this program cannot write the format there, or push it."""
  if name in _OF_ONE_PROCESS and jax.process_count() > 1:
    raise UserError(f"one process writes {name}, and these are several; export in one of its own")
  if repository and isinstance(target, StorePath):
    raise UserError(f"an export is pushed from a local folder, and {target} is none; give another")


def _check_unused(target: AnyPath, folder: AnyPath, base: str) -> None:
  """UserError where the export would be written over files of the run or of its base model."""
  resolved = lambda path: path.resolve() if isinstance(path, pathlib.Path) else path
  used = {"the workdir": folder}
  if base not in fetch.BUILTIN_MODELS and not base.startswith(hub.PREFIX):
    used["the folder of the base model"] = user_path(base)
  for what, path in used.items():
    if resolved(path) == resolved(target):
      raise UserError(f"{target} is {what} itself; choose another export.folder")


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


def _write_prompt_embeds(
  target: pathlib.Path, model: TunedModel, examples: Sequence[Example]
) -> None:
  task = model.question_task
  prompts = [task.prompt(example) for example in examples]
  write_prompt_embeds(target, model, [example["id"] for example in examples], prompts)


RE_RANKER = "cross_encoder"
# What writes each other format, and what reads it.
FORMATS: dict[str, tuple[Callable[..., None], str]] = {
  "adapter": (_write_adapter, "frozen_jax.load_adapter"),
  "peft": (_write_peft, "PEFT: its README.md says how"),
  "merged": (merged.write_merged, "transformers.AutoModelForCausalLM"),
  "gguf_lora": (write_gguf_lora, "llama.cpp: its README.md says how"),
  "prompt_embeds": (_write_prompt_embeds, "vLLM and transformers: docs/exports.md says how"),
  "orbax": (write_orbax, "Orbax: docs/exports.md says how"),
  "stablehlo": (write_stablehlo, "programs in JAX without frozen_jax: docs/exports.md has one"),
}
_OF_WHOLE_MODELS = {"peft": "PEFT", "gguf_lora": "llama.cpp"}  # by which they are read
_OF_QUESTIONS = {"prompt_embeds"}  # written of the questions of predict.input
_OF_ONE_PROCESS = {"prompt_embeds", "orbax", "stablehlo"}
# Of a format that cannot hold every method: UserError for (description, parts by name), before the
# LM is read.
_CHECKS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], None]] = {
  "peft": peft.check_peft,
  "merged": merged.check_merged,
  "gguf_lora": check_gguf_lora,
  "prompt_embeds": check_prompt_embeds,
}
# Of a format that older files in its folder would disturb: the names of those that go before it.
_REPLACED: dict[str, Sequence[str]] = {"merged": merged.REPLACED}
