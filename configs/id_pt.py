"""Input-dependent prompt tuning (Levine et al., 2022) on many tasks.

    python -m frozen_jax.main --config=configs/id_pt.py

A small network reads each text by way of a frozen text encoder and writes the prompt for it.
Stages: `shared` tunes one prompt for all tasks, the baseline; `id_pt` takes as many steps from the
same start.

Variants: `:smoke` the same in a minute or two; `:t0` T0/P3 rows from files:

    python -m frozen_jax.main --config=configs/id_pt.py:t0 \\
      --config.data.train=t0_train.jsonl.gz --config.data.validation=t0_validation.jsonl.gz \\
      --config.data.test=t0_validation.jsonl.gz \\
      --config.data.held_out=t0_zero_shot.jsonl.gz,bigbench_choices.jsonl.gz

`:t0_j1` the paper's scale: a T5-base encoder and an LM of 7.5 billion parameters on P3, prepared by
`frozen_jax/data/builders/task_rows.py`. It needs a mesh and an LM of one's own (`model.name`);
`python -m frozen_jax.tools.cost --config=configs/id_pt.py:t0_j1` says what it takes: 24.5 million
trained parameters (0.33% of the LM's; the paper says about 0.3%), and for a text of 512 tokens 1.5%
more FLOPs for encoder and generator (the paper: about 1%) and 3.9% for the prompt's 20 positions.

`:late` and `:t0_late` (T0's rows): without a text encoder. Beside `shared`, at the input, stages
`late_prompt` and `late_id_pt`: their prompts join the text within the stack (`prompt.layer`), and
the generator reads the LM's own states there. `:t0_late`, three
seeds, 100 steps: loss 3.077 on trained tasks, 2.409 on held-out sets; a shared late prompt 3.138
and 2.454, a prompt at the input 3.318 and 2.559 (docs/results/t0_methods.md).

`:llama3_8b`, `:llama3_70b`, `:j1_jumbo` a large LM on a pod (docs/pods.md), with that encoder.
"""

from ml_collections import ConfigDict

from frozen_jax.config.large_models import J1_LARGE, LARGE_MODELS, large_model, t5_base
from frozen_jax.config.presets import many_tasks, shrink_many_tasks, t0
from frozen_jax.run.defaults import defaults


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  many_tasks(config)
  config.stage_order = ("shared", "id_pt")
  config.baseline = "shared"
  config.stages = ConfigDict({"shared": {"method": "prompt_tuning"}, "id_pt": {"method": "id_pt"}})
  config.model.encoder = "minilm-l6-v2"
  if variant == "smoke":
    shrink_many_tasks(config)
  elif variant == "t0":
    t0(config)
  elif variant in ("late", "t0_late"):
    _late(config)
    if variant == "t0_late":
      t0(config)
  elif variant == "t0_j1":
    t0(config)
    _paper(config)
  elif variant in LARGE_MODELS:
    large_model(config, variant)
    t5_base(config)
  elif variant:
    others = ", ".join(("smoke", "t0", "t0_j1", "late", "t0_late", *LARGE_MODELS))
    raise ValueError(f"no variant {variant!r}; there are: {others}")
  return config


def _late(config: ConfigDict) -> None:
  """A shared prompt at the input, one within the stack, and one made there for each text."""
  config.stage_order = ("shared", "late_prompt", "late_id_pt")
  config.model.encoder = ""
  within = {"prompt": {"layer": "0.2"}}
  config.stages.late_prompt = ConfigDict({"method": "prompt_tuning", **within})
  config.stages.late_id_pt = ConfigDict({"method": "id_pt", **within})
  del config.stages.id_pt


def _paper(config: ConfigDict) -> None:
  """J1-Large's and T5-base's sizes; neither the LM's weights nor its tokenizer are public."""
  t5_base(config)
  config.model.update({"name": "j1-large", "dtype": "bfloat16"})
  config.model.sizes = ConfigDict(J1_LARGE)
  config.generator = ConfigDict({"p_prime_length": 20, "width": 768, "heads": 12, "layers": 2})
  config.prompt.length = 20
  config.mesh.update({"fsdp": 8, "tensor": 4})
  config.data.update(
    {
      "train": "tfds:task_rows/p3/train",
      "validation": "tfds:task_rows/p3/validation",
      "test": "tfds:task_rows/p3/validation",
      "held_out": ("tfds:task_rows/p3/test",),
      "lengths": (256, 512, 1024),
      "encoder_length": 512,
      "cap": 500_000,
    }
  )
  config.train.update({"steps": 30_000, "batch_size": 1024, "accumulate": 4})
