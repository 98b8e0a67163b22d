"""One side of `accelerator`: `... benchmarks.accelerator_side ours|peer MODEL METHOD ROWS LENGTH`.

The same sizes, random weights in bfloat16, random text of which every token but the first is a
target, and a step of Adam over what is trained. Ours is the package's own training step; PEFT's is
as its documentation tells a user to do it, without gradient checkpointing, as ours.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import worker
from frozen_jax.config import large_models

PROMPT, RANK, ALPHA = 100, 8, 16.0
LEARNING_RATE = 1e-2
TINY = {  # for tests and for a first try
  "vocab_size": 96,
  "width": 64,
  "layers": 2,
  "heads": 4,
  "kv_heads": 2,
  "head_dim": 16,
  "mlp_width": 96,
  "context": 512,
  "tied": False,
}
MODELS = {"llama3_8b": large_models.LLAMA3_8B, "tiny": TINY}
METHODS = ("prompt_tuning", "lora")


class Side(NamedTuple):
  """A training step -> its loss, how long a matrix product takes, the peak of memory in bytes, and
  how many parameters are frozen and trained."""

  step: Callable[[], float]
  matrix_seconds: Callable[[int], float]
  peak_bytes: Callable[[], int] | None
  parameters: tuple[int, int]


def text(vocab_size: int, rows: int, length: int) -> np.ndarray:
  """The same token ids in every process, int32 [rows, length]."""
  return np.random.default_rng(0).integers(3, vocab_size, (rows, length), dtype=np.int32)


def ours(model: str, method: str, rows: int, length: int) -> Side:
  """frozen_jax's step on one device."""
  import jax
  import jax.numpy as jnp

  from benchmarks.ours import matrix_seconds
  from frozen_jax.backbones import decoder
  from frozen_jax.backbones.config import DecoderConfig
  from frozen_jax.core.paths import num_parameters
  from frozen_jax.methods.lora import Lora, LoraSettings
  from frozen_jax.methods.prompt_tuning import PromptTuning
  from frozen_jax.models.frozen_lm import FrozenLM
  from frozen_jax.modules.settings import PromptSettings
  from frozen_jax.sharding.mesh import make_mesh
  from frozen_jax.training.optimizer import make_optimizer
  from frozen_jax.training.settings import TrainSettings
  from frozen_jax.training.state import create_state
  from frozen_jax.training.step import make_train_step

  config = DecoderConfig(**MODELS[model])
  params = decoder.random_params(config, jax.random.key(0), jnp.bfloat16)
  tokens = text(config.vocab_size, rows, length)
  positions = np.tile(np.arange(length - 1, dtype=np.int32), (rows, 1))
  batch = {
    "tokens": tokens,
    "mask": np.ones_like(tokens),
    "target_positions": positions,
    "target_ids": tokens[:, 1:],
    "target_mask": np.ones_like(positions),
  }
  batch = {name: jnp.asarray(array) for name, array in batch.items()}
  if method == "lora":
    learner: Any = Lora(config, LoraSettings(RANK, ALPHA))
    start = learner.init(FrozenLM(model, config, params, None, ""), jax.random.key(1))
  else:
    learner = PromptTuning(config, PromptSettings(length=PROMPT))
    vectors = jax.random.normal(jax.random.key(1), (PROMPT, config.width)) * 0.02
    start = {"prompt": {"vectors": vectors}}
  constant = {"warmup_steps": 0, "final_fraction": 1.0, "weight_decay": 0.0, "clip_norm": 0.0}
  optimizer = make_optimizer(TrainSettings(steps=1000, **constant), LEARNING_RATE)
  sizes = num_parameters(params), num_parameters(start)
  state = create_state(start, optimizer, jax.random.key(0), make_mesh())
  train_step = make_train_step(learner, optimizer)
  frozen = {"lm": params, "frozen_inputs": {}}

  def step() -> float:
    nonlocal state
    state, metrics = train_step(state, frozen, batch)
    jax.block_until_ready(state)
    return float(metrics["loss"])

  device = jax.devices()[0]
  peak = None
  if device.memory_stats():
    peak = lambda: device.memory_stats()["peak_bytes_in_use"]
  return Side(step, functools.partial(matrix_seconds, "bfloat16"), peak, sizes)


def peer(model: str, method: str, rows: int, length: int) -> Side:
  """PEFT's step, on the GPU where there is one."""
  import peft
  import torch
  import transformers

  from benchmarks.peer import matrix_seconds

  sizes = MODELS[model]
  device = "cuda" if torch.cuda.is_available() else "cpu"
  config = transformers.LlamaConfig(
    vocab_size=sizes["vocab_size"],
    hidden_size=sizes["width"],
    intermediate_size=sizes["mlp_width"],
    num_hidden_layers=sizes["layers"],
    num_attention_heads=sizes["heads"],
    num_key_value_heads=sizes["kv_heads"],
    head_dim=sizes["head_dim"],
    max_position_embeddings=sizes["context"],
    tie_word_embeddings=sizes["tied"],
  )
  torch.manual_seed(0)
  with torch.device(device):
    base = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
  frozen = sum(parameter.numel() for parameter in base.parameters())
  task = peft.TaskType.CAUSAL_LM
  if method == "lora":
    chosen: Any = peft.LoraConfig(
      task_type=task, r=RANK, lora_alpha=ALPHA, target_modules="all-linear"
    )
  else:
    chosen = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=PROMPT)
  tuned = peft.get_peft_model(base, chosen).to(device)
  tuned.train()
  trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
  optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
  tokens = torch.tensor(text(sizes["vocab_size"], rows, length), dtype=torch.long, device=device)
  mask = torch.ones_like(tokens)

  def step() -> float:
    loss = tuned(input_ids=tokens, attention_mask=mask, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()

  peak = torch.cuda.max_memory_allocated if device == "cuda" else None
  counts = frozen, sum(parameter.numel() for parameter in trained)
  return Side(step, functools.partial(matrix_seconds, torch.bfloat16, device), peak, counts)


SIDES = {"ours": ours, "peer": peer}


def main() -> None:
  side, model, method, rows, length = sys.argv[1:]
  built = SIDES[side](model, method, int(rows), int(length))
  worker.serve(built.step, built.matrix_seconds, built.peak_bytes, {"parameters": built.parameters})


if __name__ == "__main__":
  main()
