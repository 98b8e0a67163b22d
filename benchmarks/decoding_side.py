"""A side of `decoding`: `python -m benchmarks.decoding_side SIDE MODEL DTYPE AT_ONCE P S N`.

Each draws S samples of N tokens of each of P prompts. SIDE is

  ours      `models.generation.complete`: the prompt is read once for all its samples
  separate  the same, S times with one sample each
  peer      transformers' `generate` with `num_return_sequences`, on batches of prompts sorted by
            length; on CUDA where torch has it

AT_ONCE is how many completions are generated at once (`peer`: prompts times samples). No side has
an end token, so all draw the same number of tokens, which a step returns.
"""

import dataclasses
import math
import sys
from collections.abc import Callable

import numpy as np

from benchmarks import worker
from frozen_jax.core.host_memory import keep_freed_memory, wait_for_each_program
from frozen_jax.core.types import Prompt

SHORTEST, LONGEST = 8, 128  # tokens of a prompt

Draw = Callable[[int, int, float], list[list[list[int]]]]  # samples, new, temperature -> ids


def main() -> None:
  side, model, dtype, *numbers = sys.argv[1:]
  batch_size, count, samples, new = map(int, numbers)
  made: Callable[[str, str, int, int], Draw]
  made = {"ours": ours, "separate": separate, "peer": peer}[side]
  if side != "peer":
    keep_freed_memory()  # as the command does
    wait_for_each_program()
  draw = made(model, dtype, batch_size, count)
  # No use of the machine is reported.
  worker.serve(lambda: drawn(draw(samples, new, 1.0)), lambda width: math.inf)


def drawn(ids: list[list[list[int]]]) -> float:
  """How many tokens these are."""
  return float(sum(len(sample) for prompt in ids for sample in prompt))


def prompts(count: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
  """Random tokens; lengths from 8 to 128, short ones as often as long ones (by their logarithm)."""
  random = np.random.default_rng(seed)
  lengths = np.exp(random.uniform(math.log(SHORTEST), math.log(LONGEST + 1), count)).astype(int)
  return [random.integers(3, vocab_size, length).tolist() for length in lengths]


def ours(model: str, dtype: str, batch_size: int, count: int) -> Draw:
  """The engine, all samples in one call."""
  from frozen_jax.decoding.requests import Sampling
  from frozen_jax.models.frozen_lm import load_frozen
  from frozen_jax.models.generation import complete

  lm = dataclasses.replace(load_frozen(model, dtype), tokenizer=None, end_ids=())
  zero_shot = lm.zero_shot()
  asked = [Prompt(ids) for ids in prompts(count, lm.config.vocab_size)]

  def draw(samples: int, new: int, temperature: float, seed: int = 0) -> list[list[list[int]]]:
    sampling = Sampling(new, temperature, samples, seed)
    completions = complete(zero_shot, asked, sampling, batch_size)
    return [[one.ids for one in each] for each in completions]

  return draw


def separate(model: str, dtype: str, batch_size: int, count: int) -> Draw:
  """The engine, a call for each sample."""
  once = ours(model, dtype, batch_size, count)

  def draw(samples: int, new: int, temperature: float) -> list[list[list[int]]]:
    found = [once(1, new, temperature, seed) for seed in range(samples)]
    return [[sample for (sample,) in each] for each in zip(*found, strict=True)]

  return draw


def peer(model: str, dtype: str, batch_size: int, count: int) -> Draw:
  """transformers, with every option that cuts the distribution switched off."""
  import torch
  from transformers import AutoModelForCausalLM

  device = "cuda" if torch.cuda.is_available() else "cpu"
  lm = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).to(device).eval()
  lm.generation_config.eos_token_id = None
  asked = prompts(count, lm.config.vocab_size)
  order = sorted(range(count), key=lambda index: len(asked[index]))

  def draw(samples: int, new: int, temperature: float) -> list[list[list[int]]]:
    how = {"max_new_tokens": new, "num_return_sequences": samples, "pad_token_id": 0}
    how |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    found: list[list[list[int]]] = [[] for _ in asked]
    size = max(batch_size // samples, 1)
    for start in range(0, count, size):
      chosen = order[start : start + size]
      tokens, mask = _left_padded([asked[index] for index in chosen])
      given = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
      given = {name: value.to(device) for name, value in given.items()}
      with torch.inference_mode():
        ids = lm.generate(**given, **how)[:, tokens.shape[1] :].tolist()
      for place, index in enumerate(chosen):
        found[index] = ids[place * samples : (place + 1) * samples]
    return found

  return draw


def _left_padded(texts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
  tokens, mask = np.zeros((2, len(texts), max(map(len, texts))), np.int64)
  for row, text in enumerate(texts):
    tokens[row, -len(text) :], mask[row, -len(text) :] = text, 1
  return tokens, mask


if __name__ == "__main__":
  main()
