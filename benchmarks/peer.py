"""PEFT's side of `training_step`: `python -m benchmarks.peer DTYPE WORK FOLDER`.

As its documentation tells a user to do it: a `PeftModelForCausalLM` with `PromptTuningConfig`,
labels of -100 where there is no target, the model's own loss, torch's Adam over what is trained.
"""

import functools
import sys
import time

import peft
import torch
from transformers import AutoModelForCausalLM

from benchmarks import work, worker


def main() -> None:
  dtype_name, name, folder = sys.argv[1:]
  dtype = getattr(torch, dtype_name)
  base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
  todo = work.make(base.config.vocab_size, base.config.hidden_size, name)
  settings = peft.PromptTuningConfig(
    task_type=peft.TaskType.CAUSAL_LM, num_virtual_tokens=work.PROMPT
  )
  model = peft.get_peft_model(base, settings)
  model.train()
  trained = [p for p in model.parameters() if p.requires_grad]
  with torch.no_grad():
    trained[0].copy_(torch.tensor(todo.prompt))
  optimizer = torch.optim.Adam(trained, lr=work.LEARNING_RATE)

  tokens = torch.tensor(todo.tokens)
  mask = torch.tensor(todo.mask)
  place, lengths = torch.arange(tokens.shape[1]), torch.tensor(todo.lengths)[:, None]
  is_target = (place < lengths) & (place >= lengths - todo.targets)
  labels = torch.where(is_target, tokens, -100)

  def step() -> float:
    loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()

  worker.serve(step, functools.partial(matrix_seconds, dtype, "cpu"))


def matrix_seconds(dtype: torch.dtype, device: str, width: int) -> float:
  """How long one product of two square matrices takes."""
  a = torch.ones((width, width), dtype=dtype, device=device)
  wait = torch.cuda.synchronize if device == "cuda" else lambda: None
  wait()
  start = time.perf_counter()
  torch.matmul(a, a)
  wait()
  return time.perf_counter() - start


if __name__ == "__main__":
  main()
