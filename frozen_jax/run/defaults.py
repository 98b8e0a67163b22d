"""The config keys that every experiment has, with their defaults; configs/*.py start from here.

Imports no jax: a config is built before the devices are.
"""

from ml_collections import ConfigDict


def defaults() -> ConfigDict:
  """A fresh config; an experiment's file changes what is its own.

  An empty string means "none" throughout (the command line cannot tell None from 'None'), and
  lists are tuples (the command line can replace those).
  """
  config = ConfigDict()
  config.seed = 0
  config.init_from = ""  # a workdir or an exported adapter to start the trained parts from
  config.model = _model()
  config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
  config.data = _data()
  config.prompt = _prompt()
  config.train = _train()
  config.evaluate = _evaluate()
  config.predict = ConfigDict({"input": "-"})  # questions: a file, or - for standard input
  config.export = ConfigDict({"folder": "", "format": "adapter"})  # adapter or peft
  config.tensorboard = False
  # Stages run in `order`; each is this config with its own entry of `stages` laid over it.
  config.order = ()
  config.stages = ConfigDict()
  config.baseline = "zero_shot"  # the row of the table that results.json calls the baseline
  return config


def _model() -> ConfigDict:
  """The frozen LM, and a frozen text encoder."""
  return ConfigDict(
    {
      "name": "smollm2-135m-instruct",  # built-in name, HF folder, .gguf file or hf:owner/name
      "dtype": "float32",  # of the frozen weights: float32 or bfloat16
      "quantize": "",  # keep the matrices at fewer bits: int8, int4 or nf4
      "cache": "",  # int8: keep the keys and values of texts that are continued at 8 bits
      "encoder": "",  # a text encoder for methods that have one: built-in name, HF folder, hf:...
      "remat": False,  # recompute each layer in the backward pass: less memory, more time
    }
  )


def _data() -> ConfigDict:
  """Where examples come from, and how they become texts."""
  return ConfigDict(
    {
      "train": "world_facts/train",  # tfds:NAME/SPLIT, a JSON-lines path, or a built-in name
      "validation": "world_facts/validation",
      "test": "world_facts/test",
      "fields": (),  # ("question=query", ...): a source's own field names
      "templates": "",  # a file or folder of jinja templates, as promptsource writes them
      "sampling": "",  # of several data sets: "" all rows alike, proportional or temperature
      "temperature": 2.0,  # sizes of data sets count to the power of 1 / temperature
      "cap": 0,  # sizes above it count as it; 0: none
      "held_out": (),  # data that is scored and never trained on
      "template": "plain",  # plain, chat, or a text with {question} in it
      "lengths": (32, 64, 128, 256),  # texts are padded to the first of these that holds them
      "encoder_length": 256,  # tokens of a text that the text encoder reads; what is beyond is cut
    }
  )


def _prompt() -> ConfigDict:
  """The soft prompt."""
  return ConfigDict(
    {
      "length": 16,
      "per_task": False,  # a prompt for each data set that the rows name, instead of one for all
      "text": (
        "Answer the question about the world with a short fact: the name of a place, a people, a"
        " language or a currency."
      ),  # the prompt starts as the embeddings of this; empty: random tokens
    }
  )


def _train() -> ConfigDict:
  """A stage's training."""
  return ConfigDict(
    {
      "steps": 100,
      "batch_size": 32,
      "accumulate": 1,  # microbatches a step
      "log_every": 10,
      "validate_every": 25,
      "validate_examples": 256,
      "checkpoint_every": 25,
      "patience": 0,  # validations without a better loss after which a stage ends; 0: never
      "learning_rate": {  # by the part of a method's trained tree
        "prompt": 0.02,
        "first_prompt": 0.02,
        "connector": 3e-4,
        "encoder_prompt": 0.01,
        "generator": 1e-3,
        "prefix": 5e-3,
        "lora": 1e-3,
        "adapters": 1e-3,
        "lm": 2e-5,
      },
      "warmup_steps": 10,
      "final_fraction": 0.1,  # of the peak rate, at the end of the cosine
      "weight_decay": 0.01,
      "clip_norm": 1.0,
    }
  )


def _evaluate() -> ConfigDict:
  """What is scored, and how."""
  return ConfigDict(
    {
      "max_examples": 500,  # of data.test, and of each source of data.held_out
      "max_new_tokens": 16,
      "num_beams": 1,  # above 1 answers are found by beam search, else they are greedy
      "batch_size": 64,
      "normalisation": "sum",  # of the likelihoods that rank choices: sum, tokens or bytes
      "general_text": "",  # plain text on which the LM's perplexity is taken before and after
      "skills": (),  # stages whose answers are compared with those after the stages behind them
    }
  )


def generator() -> ConfigDict:
  """The `generator` section of configs with a stage of id_pt, whose encoder is `model.encoder`."""
  return ConfigDict(
    {
      "p_prime_length": 8,  # trained vectors before the encoder's text; 0: its states can be kept
      "constant": True,  # a constant prompt, to which the generator adds; False: the plain form
      "width": 256,
      "heads": 4,
      "layers": 1,  # self-attention blocks behind the cross-attention
    }
  )


def lora() -> ConfigDict:
  """The `lora` section of configs with a stage of lora."""
  return ConfigDict(
    {
      "rank": 8,
      "alpha": 16,  # updates count alpha / rank times
      "targets": ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up", "mlp/down"),
    }
  )


def adapters() -> ConfigDict:
  """The `adapters` section of configs with a stage of adapters."""
  return ConfigDict({"bottleneck": 32})


def many_tasks(config: ConfigDict) -> None:
  """Lets a config train on the built-in mixture of tasks, with whole tasks held out."""
  config.data.update(
    {
      "train": "many_tasks/train",
      "validation": "many_tasks/validation",
      "test": "many_tasks/test",
      "held_out": ("many_tasks/held_out",),
      "template": "{question}",  # inputs stand as they are
      "sampling": "temperature",
      "lengths": (32, 64, 128),
    }
  )
  config.prompt.text = "Read the text and do what it asks for. Give the answer alone."
  config.model.dtype = "bfloat16"
  config.train.steps = 300
  config.train.batch_size = 16
  config.train.validate_every = config.train.checkpoint_every = 50
  config.train.learning_rate.update({"prefix": 0.05, "lora": 3e-3, "adapters": 3e-3, "lm": 1e-4})


def t0(config: ConfigDict) -> None:
  """T0/P3 rows from files, which are named by flags where they lie elsewhere."""
  config.data.update(
    {
      "train": "t0_train.jsonl.gz",
      "validation": "t0_validation.jsonl.gz",
      "test": "t0_validation.jsonl.gz",
      "held_out": ("t0_zero_shot.jsonl.gz", "bigbench_choices.jsonl.gz"),
      "sampling": "proportional",
      "cap": 1000,
      "lengths": (64, 128, 192, 256),
    }
  )
  config.evaluate.max_new_tokens = 32
  config.train.learning_rate.update({"prompt": 0.05, "generator": 3e-4})


def natural_questions(config: ConfigDict) -> None:
  """Natural Questions, closed book, from files: flags name them where they lie elsewhere."""
  config.data.train = "nq_train.jsonl.gz"
  config.data.validation = "nq_validation.jsonl.gz"
  config.data.test = "nq_open_test.jsonl.gz"
  config.prompt.text = "Answer the question with a short fact: a name, a number, a date or a place."
  config.train.steps = 300
  config.evaluate.max_examples = 1000


def shrink(config: ConfigDict) -> None:
  """Makes a config its `:smoke` variant: the same work in about a minute on two cores.

  float32, so that runs can be compared closely.
  """
  config.model.dtype = "float32"
  config.train.update(
    {
      "steps": 3,
      "batch_size": 8,
      "log_every": 1,
      "validate_every": 2,
      "validate_examples": 8,
      "checkpoint_every": 2,
      "warmup_steps": 1,
    }
  )
  config.evaluate.update({"max_examples": 8, "batch_size": 8})
