"""Export: the adapter of a finished run in a form that other tools load."""

import pathlib
from collections.abc import Callable
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.export.peft import write_peft_prompt
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.run.evaluate import open_run
from frozen_jax.run.report import say


def export(config: Any, folder: str | pathlib.Path) -> dict[str, str]:
  """Writes the adapter of a complete run to `export.folder` (default: WORKDIR/export).

  `export.format`: one of `FORMATS`. Raises UserError for another one, and for an adapter that the
  format has no form for.
  """
  folder = pathlib.Path(folder)
  run, model = open_run(config, folder)
  settings = run.values["export"]
  target, name = pathlib.Path(settings["folder"] or folder / "export"), settings["format"]
  if name not in FORMATS:
    raise UserError(f"export.format is {name!r}; there are: {', '.join(FORMATS)}")
  write, reader = FORMATS[name]
  write(target, model)
  say(f"The adapter is in {target}, for {reader}.")
  return {"folder": str(target), "format": name}


def _write_adapter(target: pathlib.Path, model: TunedModel) -> None:
  model.save(target)


def _write_peft(target: pathlib.Path, model: TunedModel) -> None:
  vectors = model.trained.get("prompt", {}).get("vectors")
  parts = {**model.trained, **model.frozen_inputs}
  if set(parts) != {"prompt"} or vectors.ndim != 2:
    raise UserError(
      f"PEFT has no form for what {model.method.name} trains ({', '.join(parts)}); it takes one"
      " tuned prompt: use --config.export.format=adapter"
    )
  sizes = model.lm.config
  write_peft_prompt(target, vectors, model.lm.name, sizes.width, sizes.layers, sizes.heads)


# What writes each format, and what reads it.
FORMATS: dict[str, tuple[Callable[[pathlib.Path, TunedModel], None], str]] = {
  "adapter": (_write_adapter, "frozen_jax.load_adapter"),
  "peft": (_write_peft, "peft.PeftModel.from_pretrained"),
}
