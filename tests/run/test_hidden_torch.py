"""The program never imports torch, though it is installed here and transformers asks for it."""

from tests.processes import start

PROGRAM = """
import sys
from frozen_jax import main

def run(command):
  from frozen_jax.text import tokenizer
  made = tokenizer.from_folder(main.pathlib.Path(command.config.model.name), 320)
  before = "torch" in sys.modules
  import torch
  print(type(made).__module__, before, "torch" in sys.modules)

main.run = run
sys.exit(main.program())
"""


def test_a_tokenizer_is_read_without_torch(program):
  arguments = program.command("prompt_tuning.py:smoke")[2:]
  out, err = program.finish(start("-c", PROGRAM, *arguments, anew=True))
  module, before, after = out.split()
  assert module.startswith("transformers.") and (before, after) == ("False", "True")
  assert "PyTorch" not in err
