"""A tiny random Llama with a tokenizer and a text encoder, and models as if tuned on it."""

import re

import jax
import pytest

import frozen_jax
from frozen_jax.config.section import resolve
from frozen_jax.data.settings import InputSettings
from frozen_jax.decoding.settings import GenerationSettings
from frozen_jax.methods import METHODS
from frozen_jax.models.frozen_lm import with_encoder
from frozen_jax.models.tuned_model import TunedModel
from tests.backbones import encoder_cases
from tests.processes import ROOT
from tests.run.conftest import ENCODER_POSITIONS, make_model, make_tokenizer
from tests.run.task_files import make_words

QUESTIONS = ("What is the capital of Peru?", "Lima?", "Which people live in New Delhi, Mali?")
SETTINGS = {
  "prompt": {"length": 3, "text": ""},
  "lora": {"rank": 2},
  "p_tuning": {"width": 8},
  "adapters": {"bottleneck": 4},
  "generator": {"width": 16, "heads": 2, "p_prime_length": 2},
  "looped": {"start": "0", "stop": "1"},
  "recursion": {"connector": {"width": 16, "heads": 2, "layers": 1}},
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
  """The folder of the frozen model, as `save_pretrained` writes it."""
  folder, tokenizer = tmp_path_factory.mktemp("model") / "tiny", make_tokenizer()
  make_model(len(tokenizer)).save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  return folder


@pytest.fixture(scope="session")
def lm(folder):
  return frozen_jax.load_frozen(str(folder))


@pytest.fixture(scope="session")
def lm_with_encoder(lm, tmp_path_factory):
  folder, tokenizer = tmp_path_factory.mktemp("encoder") / "tiny", make_words()
  sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": ENCODER_POSITIONS}
  encoder_cases.make("bert", **sizes, num_attention_heads=4).save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  return with_encoder(lm, str(folder), "float32")


def tuned(lm, name, inputs=None, **settings):
  """A model of a method, with random numbers added to where its training starts.

  settings: of its sections, laid over those above.
  """
  kind, inputs = METHODS[name], resolve(InputSettings, inputs or {}, "data")
  given = {key: SETTINGS.get(key, {}) | settings.get(key, {}) for key in kind.sections}
  sections = {key: resolve(kind.sections[key], value, key) for key, value in given.items()}
  method = kind.build(lm, sections, datasets=inputs.datasets)
  leaves, structure = jax.tree.flatten(method.init(lm, jax.random.key(1)))
  keys = jax.random.split(jax.random.key(2), len(leaves) + 1)
  noise = [
    0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=False)
  ]
  trained = jax.tree.unflatten(structure, [a + b for a, b in zip(leaves, noise, strict=True)])
  vectors = 0.2 * jax.random.normal(keys[-1], (3, lm.config.width))
  reads_prompt = name in ("neural_recursion", "textual_recursion")
  return TunedModel(
    lm,
    method,
    trained,
    {"first_prompt": {"vectors": vectors}} if reads_prompt else {},
    inputs=inputs,
    generation=GenerationSettings(max_new_tokens=6),
    sections=sections,
  )


def on_the_page(marker):
  """The Python of docs/exports.md in which a text stands."""
  page = (ROOT / "docs" / "exports.md").read_text()
  (found,) = (one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if marker in one)
  return found


def lines_of_the_page(*words):
  """The indented lines of docs/exports.md in whose block all these words occur."""
  text = (ROOT / "docs" / "exports.md").read_text()
  blocks = re.findall(r"(?:^    .*\n)+", text, flags=re.MULTILINE)
  (found,) = (block for block in blocks if all(word in block for word in words))
  return "\n".join(line.removeprefix("    ") for line in found.splitlines())
