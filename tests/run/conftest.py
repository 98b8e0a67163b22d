"""A tiny random Llama with a tokenizer of its own, and runs of whole programs on it.

Everything is made once a session and must not be changed by a test: copy what is to be altered.
"""

import os
import pathlib
import subprocess
import sys

import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).parents[2]
CONTEXT = 128
END = "<|end|>"
COUNTRIES = (
  "Peru",
  "Chile",
  "Kenya",
  "Japan",
  "Norway",
  "Egypt",
  "France",
  "India",
  "Cuba",
  "Mali",
)
CITIES = ("Lima", "Santiago", "Nairobi", "Tokyo", "Oslo", "Cairo", "Paris", "New Delhi", "Havana")

# Overrides that make the smoke configs compile little: one length of texts, a small Connector. In
# float32, so that runs can be compared closely.
SMALL = (
  "--config.model.dtype=float32",
  "--config.prompt.length=4",
  "--config.data.lengths=64",
)
SMALL_RECURSION = (
  *SMALL,
  "--config.recursion.connector.width=16",
  "--config.recursion.connector.heads=2",
  "--config.recursion.connector.layers=1",
)


def make_tokenizer():
  """A byte-level BPE of some 300 tokens that can spell anything."""
  texts = [
    f"Question: What is the capital of {country}?\nAnswer: {city}\nWhich people live in {city}?"
    for country in COUNTRIES
    for city in CITIES
  ]
  bpe = tokenizers.Tokenizer(models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = decoders.ByteLevel()
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  trainer = trainers.BpeTrainer(
    vocab_size=320, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
  )
  bpe.train_from_iterator(texts, trainer)
  return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END)


def make_model(vocabulary, seed=0, poison=False):
  torch.manual_seed(seed)
  sizes = transformers.LlamaConfig(
    vocab_size=vocabulary,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=CONTEXT,
    initializer_range=0.15,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
  )
  model = transformers.LlamaForCausalLM(sizes).eval()
  if poison:
    with torch.no_grad():
      model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
  return model


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory):
  """`make_folder(seed=0, words=True, poison=False)`: a folder as `save_pretrained` writes it."""

  def make(seed=0, words=True, poison=False):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), seed, poison).save_pretrained(folder)
    if words:
      tokenizer.save_pretrained(folder)
    return folder

  return make


@pytest.fixture(scope="session")
def tiny(make_folder):
  """The folder of the model that all runs are on."""
  return make_folder()


@pytest.fixture(scope="session")
def lm(tiny):
  """The same model, loaded."""
  import frozen_jax

  return frozen_jax.load_frozen(str(tiny))


class Program:
  """`python -m frozen_jax.main` on the tiny model, in processes that share what is compiled."""

  def __init__(self, model, compiled):
    self.model = model
    self.compiled = compiled

  def command(self, config, *arguments, model=None):
    """The command line, without the interpreter."""
    sizes = SMALL_RECURSION if "recursive" in config or "connector" in config else SMALL
    name = f"--config.model.name={model or self.model}"
    return ["-m", "frozen_jax.main", f"--config=configs/{config}", name, *sizes, *arguments]

  def environment(self, devices=1, **more):
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return (
      kept
      | {
        "JAX_PLATFORMS": "cpu",
        # Compiling is what these runs spend their time on.
        "XLA_FLAGS": "--xla_backend_optimization_level=0"
        f" --xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(self.compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
      }
      | more
    )

  def start(self, *arguments, devices=1, cwd=ROOT, **more):
    """A process with these arguments of the interpreter."""
    return subprocess.Popen(
      [sys.executable, *map(str, arguments)],
      cwd=cwd,
      env=self.environment(devices, **more),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def train(self, config, workdir, *arguments, devices=1, **more):
    """Starts a training run."""
    arguments = (f"--workdir={workdir}", *arguments)
    return self.start(*self.command(config, *arguments), devices=devices, **more)

  def finish(self, process, status=0, text=None):
    """Its (standard output, standard error), once it has ended with this status."""
    out, err = process.communicate(text, timeout=300)
    assert process.returncode == status, f"{process.args}\n{out}\n{err[-4000:]}"
    return out, err

  def run(self, config, *arguments, status=0, text=None, model=None, **more):
    """The whole command -> (standard output, standard error)."""
    process = self.start(*self.command(config, *arguments, model=model), **more)
    return self.finish(process, status, text)


@pytest.fixture(scope="session")
def program(tiny, tmp_path_factory):
  return Program(tiny, tmp_path_factory.mktemp("compiled"))


class Trained:
  """A complete run: its workdir and what it said."""

  def __init__(self, workdir, out, err):
    self.workdir, self.out, self.err = workdir, out, err


def _trained(program, config, folder):
  return Trained(folder, *program.finish(program.train(config, folder)))


@pytest.fixture(scope="session")
def prompt_run(program, tmp_path_factory):
  """configs/prompt_tuning.py:smoke, run to its end."""
  return _trained(program, "prompt_tuning.py:smoke", tmp_path_factory.mktemp("runs") / "prompt")


@pytest.fixture(scope="session")
def recursive_run(program, tmp_path_factory):
  """configs/recursive.py:smoke, run to its end."""
  return _trained(program, "recursive.py:smoke", tmp_path_factory.mktemp("runs") / "recursive")
