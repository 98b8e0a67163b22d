"""A tiny random Llama and a tiny random BERT, each with a tokenizer of its own, and runs of whole
programs on them.

Everything is made once a session, the tiny Llama and the whole runs for all processes of pytest
together, and must not be changed by a test: copy what is to be altered.
"""

import contextlib
import importlib
import io
import logging
from unittest import mock

import filelock
import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.backbones import encoder_cases
from tests.processes import HANGS_AFTER, ROOT, start
from tests.run.error_line import only_error
from tests.run.settings_cases import QUESTIONS, prompt_tuning_config
from tests.run.task_files import lines_file, make_words, split_rows

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
# float32 and on one device, so that runs can be compared closely.
SMALL = (
  "--config.mesh.data=1",
  "--config.model.dtype=float32",
  "--config.prompt.length=4",
  "--config.data.lengths=64",
  "--config.evaluate.max_examples=8",
  "--config.evaluate.batch_size=8",
  "--config.evaluate.max_new_tokens=16",
  "--config.train.steps=3",
  "--config.train.batch_size=8",  # rows enough to learn from
  "--config.train.checkpoint_every=2",
)
SMALL_RECURSION = (
  *SMALL,
  "--config.recursion.connector.width=16",
  "--config.recursion.connector.heads=2",
  "--config.recursion.connector.layers=1",
)
WITHIN = ("--config.recursion.write=1",)  # of two layers; 0.2 of them would be the embeddings
SMALL_TASKS = ("--config.train.validate_examples=8",)  # of configs of many tasks
# Of configs with a text encoder.
SMALL_GENERATOR = (
  "--config.generator.width=16",
  "--config.generator.heads=2",
  "--config.generator.p_prime_length=3",
)
ENCODER_POSITIONS = 40


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
def shared(tmp_path_factory, worker_id):
  """`shared(name, make)`: a folder that `make(folder)` fills, in whichever process asks first."""
  here = tmp_path_factory.getbasetemp()
  common = here if worker_id == "master" else here.parent

  def get(name, make):
    folder, done = common / name, common / f"{name}.done"
    with filelock.FileLock(common / f"{name}.lock"):
      if not done.exists():
        make(folder)
        done.touch()
    return folder

  return get


def save_model(folder, seed=0, words=True, poison=False):
  tokenizer = make_tokenizer()
  make_model(len(tokenizer), seed, poison).save_pretrained(folder)
  if words:
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory):
  """`make_folder(seed=0, words=True, poison=False)`: a folder as `save_pretrained` writes it."""

  def make(**changes):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, **changes)
    return folder

  return make


@pytest.fixture(scope="session")
def tiny(shared):
  """The folder of the model that all runs are on."""
  return shared("tiny", save_model)


@pytest.fixture(scope="session")
def make_encoder_folder(tmp_path_factory):
  """`make_encoder_folder(words=True, **changes)`: a random BERT's; changes are of its config."""

  def make(words=True, **changes):
    folder, tokenizer = tmp_path_factory.mktemp("encoder") / "tiny", make_words()
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": ENCODER_POSITIONS}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    encoder_cases.make("bert", **sizes | changes).save_pretrained(folder)
    if words:
      tokenizer.save_pretrained(folder)
    return folder

  return make


@pytest.fixture(scope="session")
def encoder(make_encoder_folder):
  """The folder of the text encoder alongside the model."""
  return make_encoder_folder()


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
  """Files of rows of several tasks, by the config key that takes them."""
  folder = tmp_path_factory.mktemp("tasks")
  rows = split_rows().items()
  return {split: lines_file(folder / f"{split}.jsonl", *own) for split, own in rows}


@pytest.fixture(scope="session")
def lm(tiny):
  """The same model, loaded."""
  import frozen_jax

  return frozen_jax.load_frozen(str(tiny))


def main_here(*arguments, text=""):
  """The program in this process, in the repository's root -> (status, output, standard error).

  It need not import everything anew, which is half of the time of a small run. text: its standard
  input.
  """
  from frozen_jax import main as command

  out, err, before = io.StringIO(), io.StringIO(), list(logging.root.handlers)
  with contextlib.ExitStack() as stack:
    stack.enter_context(contextlib.chdir(ROOT))
    stack.enter_context(contextlib.redirect_stdout(out))
    stack.enter_context(contextlib.redirect_stderr(err))
    stack.enter_context(mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()))))
    argv = ["frozen_jax.main", *map(str, arguments)]
    stack.enter_context(mock.patch("sys.orig_argv", ["python", "-m", *argv]))
    try:
      status = command.main(argv)
    finally:
      logging.root.handlers[:] = before
  return status, out.getvalue(), err.getvalue()


class Program:
  """`python -m frozen_jax.main` on the tiny model."""

  def __init__(self, model, encoder, tasks):
    self.model, self.encoder, self.tasks = model, encoder, tasks

  def command(self, config, *arguments, model=None):
    """The command line, without the interpreter."""
    sizes = SMALL_RECURSION if "recursive" in config or "connector" in config else SMALL
    sizes += WITHIN if "recursive" in config else ()
    if config.startswith(("id_pt", "multitask", "compare")):
      sizes += (*SMALL_TASKS, *(f"--config.data.{key}={at}" for key, at in self.tasks.items()))
    if config.startswith(("id_pt", "compare")):
      sizes += (*SMALL_GENERATOR, f"--config.model.encoder={self.encoder}")
    name = f"--config.model.name={model or self.model}"
    return ["-m", "frozen_jax.main", f"--config=configs/{config}", name, *sizes, *arguments]

  def train(self, config, workdir, *arguments, devices=1, **more):
    """Starts a training run."""
    arguments = (f"--workdir={workdir}", *arguments)
    return start(*self.command(config, *arguments), devices=devices, **more)

  def finish(self, process, status=0, text=None):
    """Its (standard output, standard error), once it has ended with this status."""
    out, err = process.communicate(text, timeout=HANGS_AFTER)
    assert process.returncode == status, f"{process.args}\n{out}\n{err[-4000:]}"
    return out, err

  def run(self, config, *arguments, status=0, text="", model=None):
    """The command in this process -> (standard output, standard error)."""
    found, out, err = main_here(*self.command(config, *arguments, model=model)[2:], text=text)
    assert found == status, f"{arguments}\n{out}\n{err[-4000:]}"
    return out, err


@pytest.fixture(scope="module", autouse=True)
def _no_picture():
  """Runs in this process write a small file as report.png.

  Those in processes of their own draw it, see test_contract.py; what it shows is in
  tests/evaluation/test_plots.py.
  """
  from frozen_jax.core.files import write_bytes
  from frozen_jax.run.results import records

  write = lambda path, *figures: write_bytes(path, b"no picture")
  with mock.patch.object(records, "draw_report", autospec=True, side_effect=write):
    yield


@pytest.fixture(scope="session")
def program(tiny, encoder, tasks):
  return Program(tiny, encoder, tasks)


@pytest.fixture
def call():
  """`call(*arguments)`: `main_here` -> (status, output, lines of standard error)."""

  def run(*arguments):
    status, out, err = main_here(*arguments)
    return status, out, err.strip().splitlines()

  return run


class StagesTrained(Exception):
  """The stages of a run are trained and their adapters saved: what is scored then is skipped."""


@pytest.fixture(scope="session")
def train_stages():
  """`train_stages(config, workdir)`: trains in this process, without scoring.

  What it does not reach is the end of the run, so that the workdir can be resumed.
  """
  from frozen_jax.run import train

  verb = importlib.import_module("frozen_jax.run.train")  # `frozen_jax.run.train` is the function

  def stop(*arguments):
    raise StagesTrained

  def run(config, workdir):
    with pytest.MonkeyPatch.context() as patched, pytest.raises(StagesTrained):
      patched.setattr(verb, "score_baselines", lambda *_: {})
      patched.setattr(verb, "score_models", stop)
      train(config, workdir)

  return run


@pytest.fixture
def refused(call):
  """`refused(*arguments)`: what the one `error:` line says."""

  def run(*arguments):
    status, _, lines = call(*arguments)
    return only_error(status, lines)

  return run


@pytest.fixture
def refused_run(refused, program, tmp_path):
  """The same for the small program: `refused_run(config, *arguments, model=None)`."""

  def run(config, *arguments, model=None):
    given = program.command(config, f"--workdir={tmp_path / 'run'}", *arguments, model=model)
    return refused(*given[2:])

  return run


class Trained:
  """A complete run: its workdir and what it said."""

  def __init__(self, workdir, out, err):
    self.workdir, self.out, self.err = workdir, out, err


@pytest.fixture(scope="session")
def trained(program, shared):
  """`trained(name, config)`: a run to its end, as `Trained`."""

  def get(name, config):
    def make(folder):
      said = program.finish(program.train(config, folder / "run"))
      for stream, text in zip(("out", "err"), said, strict=True):
        (folder / stream).write_text(text)

    folder = shared(name, make)
    return Trained(folder / "run", *((folder / name).read_text() for name in ("out", "err")))

  return get


@pytest.fixture(scope="session")
def prompt_run(trained):
  """configs/prompt_tuning.py:smoke, run to its end."""
  return trained("prompt_run", "prompt_tuning.py:smoke")


@pytest.fixture(scope="session")
def recursive_run(trained):
  """configs/recursive.py:smoke, run to its end."""
  return trained("recursive_run", "recursive.py:smoke")


@pytest.fixture(scope="module")
def trained_stage(tiny, train_stages, tmp_path_factory):
  """(config, workdir) of a small run whose stage is trained and that is not scored."""
  folder = tmp_path_factory.mktemp("trained")
  files = [lines_file(folder / f"{name}.jsonl", *QUESTIONS) for name in ("train", "validation")]
  config = prompt_tuning_config(tiny, *files)
  train_stages(config, folder / "run")
  return config, folder / "run"
