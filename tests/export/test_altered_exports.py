"""500 altered, cut and misnamed exports: each is one `error:` line, and nothing of it is loaded."""

import random
import shutil

import numpy as np
import pytest

import frozen_jax
from frozen_jax.core.errors import exit_status
from frozen_jax.export import peft
from frozen_jax.export.manifest import read_manifest
from frozen_jax.export.merged import write_merged
from frozen_jax.export.orbax_tree import write_orbax
from frozen_jax.export.prompt_embeds import write_prompt_embeds
from frozen_jax.text.templates import make_template
from tests.export import altering, peft_cases
from tests.export.conftest import tuned

pytestmark = pytest.mark.program

EACH = 50  # of ten forms
LM = peft_cases.lm()


def write(form, folder, lm):
  """An export of a form; returns the function that reads it, of its folder."""
  if form in peft_cases.KINDS:
    base = peft.BaseModel("tiny")
    peft.write_peft(folder, peft_cases.an_adapter(form), base, make_template("plain"))
    return lambda folder: frozen_jax.load_adapter(folder, LM)
  if form == "npy":
    np.save(folder / altering.NPY, peft_cases.draw(peft_cases.P, LM.config.width))
    return lambda folder: frozen_jax.load_adapter(folder / altering.NPY, LM)
  if form.startswith("adapter"):
    tuned(lm, "lora" if form == "adapter" else "neural_recursion").save(folder)
    return lambda folder: frozen_jax.load_adapter(folder, lm)
  if form == "merged":
    write_merged(folder, tuned(lm, "lora"))
    return lambda folder: frozen_jax.load_frozen(str(folder))
  model = tuned(lm, "prompt_tuning")
  if form == "orbax":
    write_orbax(folder, model)
  else:
    prompt = model.question_task.prompt({"id": "", "question": "Lima?"})
    write_prompt_embeds(folder, model, ["1"], [prompt])
  return lambda folder: read_manifest(folder, form)


def fault(read, folder, capsys):
  """What is wrong with how a folder is refused; "" where it is refused as it should be."""
  loaded = []
  try:
    status = exit_status(lambda: loaded.append(read(folder)))
  except BaseException as error:
    return f"{type(error).__name__}: {error}"
  said = capsys.readouterr().err
  if loaded:
    return "it is loaded"
  is_line = said.startswith("error: ") and said.endswith("\n") and len(said.splitlines()) == 1
  return "" if status == 2 and is_line else f"status {status}, {said!r}"


@pytest.mark.parametrize("form", altering.WAYS)
def test_what_was_altered_is_refused_in_a_line(form, lm, tmp_path, capsys):
  """Each way once, then at random."""
  (tmp_path / "whole").mkdir()
  read = write(form, tmp_path / "whole", lm)
  assert read(tmp_path / "whole") is not None
  capsys.readouterr()
  numbers, ways, faults = random.Random(form), altering.ways(form), []
  chosen = [*ways, *(numbers.choice(ways) for _ in range(EACH - len(ways)))]
  for name, change in chosen:
    folder = shutil.copytree(tmp_path / "whole", tmp_path / "altered")
    change(folder, numbers)
    if found := fault(read, folder, capsys):
      faults.append(f"{name}: {found[:300]}")
    shutil.rmtree(folder)
  assert len(chosen) >= EACH and not faults, "\n".join(faults)
