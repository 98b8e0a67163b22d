"""The recipes of docs/extending.md, each done here with the smallest complete example.

The line that a recipe enters in a table is read from the page, so the page cannot go stale. The
recipe of a pipeline is done in tests/pipelines/test_pipeline.py.
"""

import dataclasses
import json
import pathlib
import re
import sys
import types
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tensorflow_datasets as tfds
import torch
import transformers

import frozen_jax
from frozen_jax.backbones import decoder, families
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.families.config_reader import ConfigReader
from frozen_jax.backbones.families.shared import read_hf_common
from frozen_jax.backbones.families.table import Family, embedding_keys, linear_keys, norm_keys
from frozen_jax.config.config_file import load_config
from frozen_jax.config.section import Section, allowed, setting
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Method
from frozen_jax.data import builtin, sources
from frozen_jax.data.builtin import Builtin
from frozen_jax.methods import METHODS
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.methods.single_pass import SinglePass
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.modules.settings import PromptSettings
from frozen_jax.run import defaults
from frozen_jax.run import settings as run_settings
from frozen_jax.run.export import FORMATS, RE_RANKER, export
from frozen_jax.training.optimizer import decay_mask, learning_rates, make_optimizer
from tests.evaluation import tiny
from tests.methods import test_protocol
from tests.processes import ROOT
from tests.run.conftest import make_model, make_tokenizer

SECTIONS = re.split(r"^## ", (ROOT / "docs" / "extending.md").read_text(), flags=re.MULTILINE)[1:]
RECIPES = dict(section.split("\n", 1) for section in SECTIONS)


def line_of(title):
  """The line of code in the recipe with this title: an entry of a table."""
  (block,) = re.findall(r"```python\n(.*?)```", RECIPES[title], flags=re.DOTALL)
  return " ".join(block.split())


def test_a_recipe_is_short():
  assert list(RECIPES) == [
    *("A data set", "A model family", "A method", "An export", "A pipeline"),
  ]
  for title, text in RECIPES.items():
    assert len(text.strip().splitlines()) < 25, title


# --- A data set: frozen_jax/data/builders/colours.py


class Colours(tfds.core.GeneratorBasedBuilder):
  """Colours of things."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    text = tfds.features.Text
    features = {"question": text(), "answers": tfds.features.Sequence(text())}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    rows = {"train": {"sky": "blue", "grass": "green"}, "test": {"snow": "white"}}
    return {split: self._generate_examples(colour_of) for split, colour_of in rows.items()}

  def _generate_examples(self, colour_of):
    for thing, colour in colour_of.items():
      yield thing, {"question": f"Which colour is {thing}?", "answers": [colour]}


def test_a_data_set(monkeypatch, tmp_path):
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path))
  module = types.ModuleType("frozen_jax.data.builders.colours")
  module.Colours = Colours
  monkeypatch.setitem(sys.modules, module.__name__, module)
  with pytest.raises(UserError, match="unknown data 'colours/test'"):
    sources.open_source("colours/test")
  (entry,) = eval(f"{{{line_of('A data set')}}}", {"Builtin": Builtin}).items()
  monkeypatch.setitem(builtin.BUILTIN_DATASETS, *entry)
  specs = tuple(f"{entry[0]}/{split}" for split in entry[1].splits)  # as data/builtin.py has it
  monkeypatch.setattr(sources, "BUILTIN_SPECS", sources.BUILTIN_SPECS + specs)
  assert len(sources.open_source("colours/train")) == 2
  (row,) = sources.open_source("colours/test")
  assert row["question"] == "Which colour is snow?" and row["answers"] == ["white"]


def test_a_data_set_of_ones_own_needs_no_code(tmp_path):
  file = tmp_path / "own.jsonl"
  file.write_text(json.dumps({"query": "Which colour is snow?", "answer": "white"}))
  (row,) = sources.open_source(str(file), fields=("question=query", "answers=answer"))
  assert row["question"] == "Which colour is snow?" and row["answers"] == ["white"]


# --- A family: Llama without grouped queries, under other names of its own


def read_parrot(reader: ConfigReader) -> DecoderConfig:
  read_hf_common(reader)
  width, heads = reader.integer("dim"), reader.integer("n_heads")
  return DecoderConfig(
    vocab_size=reader.integer("vocab_size"),
    width=width,
    layers=reader.integer("n_layers"),
    heads=heads,
    kv_heads=heads,
    head_dim=width // heads,
    mlp_width=reader.integer("ffn_dim"),
  )


PARROT_KEYS = (
  *embedding_keys("embed/tokens", "embed"),
  *norm_keys("layers/attn_norm", "blocks.{layer}.norm1"),
  *norm_keys("layers/mlp_norm", "blocks.{layer}.norm2"),
  *(
    key for name in "qkvo" for key in linear_keys(f"layers/attn/{name}", f"blocks.{{layer}}.{name}")
  ),
  *linear_keys("layers/mlp/gate", "blocks.{layer}.gate"),
  *linear_keys("layers/mlp/up", "blocks.{layer}.up"),
  *linear_keys("layers/mlp/down", "blocks.{layer}.down"),
  *norm_keys("final_norm", "norm"),
  *linear_keys("head", "head"),
)

PARROT_OF_LLAMA = (  # the tensors of transformers' Llama under the names of a parrot
  *((r"self_attn\.(\w)_proj", r"\1"), (r"mlp\.(\w+)_proj", r"\1"), (r"embed_tokens", "embed")),
  *(("input_layernorm", "norm1"), ("post_attention_layernorm", "norm2"), ("lm_head", "head")),
  *((r"^model\.layers", "blocks"), (r"^model\.", "")),
)


def save_parrot(folder, model):
  """Writes a Llama as a folder with the keys and tensors of a parrot."""
  sizes, tensors = model.config, {}
  for name, tensor in model.state_dict().items():
    for pattern, replacement in PARROT_OF_LLAMA:
      name = re.sub(pattern, replacement, name)
    tensors[name] = tensor.numpy()
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  config = {"model_type": "parrot", "vocab_size": sizes.vocab_size, "dim": sizes.hidden_size}
  config |= {"n_layers": sizes.num_hidden_layers, "n_heads": sizes.num_attention_heads}
  config |= {"ffn_dim": sizes.intermediate_size}
  (folder / "config.json").write_text(json.dumps(config))


def test_a_family(monkeypatch, tmp_path):
  torch.manual_seed(0)
  sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
  sizes |= {"num_attention_heads": 2, "rms_norm_eps": 1e-5, "initializer_range": 0.3}
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
  save_parrot(tmp_path, model)
  with pytest.raises(UserError, match="a model of type 'parrot'"):
    frozen_jax.load_frozen(str(tmp_path))
  names = {"Family": Family, "decoder": decoder}
  names |= {"PARROT_KEYS": PARROT_KEYS, "read_parrot": read_parrot}
  family = eval(line_of("A model family"), names)
  assert isinstance(family, Family)
  monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, family))
  lm = frozen_jax.load_frozen(str(tmp_path))
  tokens = np.random.default_rng(0).integers(0, 31, (2, 6))
  with torch.no_grad():
    expected = model(torch.as_tensor(tokens)).logits.numpy()
  np.testing.assert_allclose(lm.logits(jnp.asarray(tokens)), expected, atol=1e-4)
  config = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(config | {"n_wings": 2, "alibi": True}))
  with pytest.raises(UserError, match="understand.*: alibi = True. Remove"):
    frozen_jax.load_frozen(str(tmp_path))


# --- A method: prompt tuning whose vectors are all the same


@dataclasses.dataclass(frozen=True)
class OneVectorSettings(Section):
  """One vector before the text."""

  section: ClassVar[str] = "one_vector"

  repeats: int = setting(3, "how often the vector is there", at_least=1)


@dataclasses.dataclass(frozen=True)
class OneVector(SinglePass):
  """The LM after one trained vector, `one_vector/vector` [1, D], several times."""

  repeats: int

  name: ClassVar[str] = "one_vector"
  sections: ClassVar[Mapping[str, type]] = {"one_vector": OneVectorSettings}
  learning_rates: ClassVar[Mapping[str, float]] = {"one_vector": 0.02}
  no_decay: ClassVar[tuple[str, ...]] = ("one_vector/.*",)

  @classmethod
  def build(cls, base: Any, sections: Mapping[str, Any], *, remat="none", datasets=()):
    return cls(base.config, sections["one_vector"].repeats, remat=remat)

  def init(self, base, key):
    vector = jax.random.normal(key, (1, self.decoder.width)) * base.embedding_rms
    return {"one_vector": {"vector": vector}}

  def prompt(self, trainable, frozen, prompts):
    return jnp.repeat(trainable["one_vector"]["vector"], self.repeats, axis=0)

  def num_virtual_tokens(self, trainable, frozen):
    return self.repeats


@pytest.fixture
def one_vector_config(monkeypatch):
  """A config whose only stage has the method, with the method in the table."""
  (entry,) = eval(f"{{{line_of('A method')}}}", {"OneVector": OneVector}).items()
  monkeypatch.setitem(METHODS, *entry)
  # What is read from the table.
  for sections in (run_settings.METHOD_SECTIONS, run_settings._ALL_SECTIONS):
    monkeypatch.setitem(sections, "one_vector", OneVectorSettings)
  config = defaults.defaults()
  config.mesh.data = 1
  config.stage_order = ("first",)
  config.stages.first = {"method": "one_vector"}
  return config


def test_a_method_as_the_tests_of_all_methods_take_it(one_vector_config):
  """What step 5 of the recipe says of `tests/methods/test_protocol.py`."""
  test_protocol.test_no_decay_covers_vectors_that_stand_for_text()
  for check in (
    test_protocol.test_names_are_those_of_the_classes,
    test_protocol.test_methods_are_hashable_values_without_arrays,
    test_protocol.test_learning_rates_are_those_of_the_trained_trees,
    test_protocol.test_every_pattern_of_no_decay_matches_a_path,
  ):
    check("one_vector")


def test_a_method(one_vector_config):
  (stage,) = run_settings.resolve_run(one_vector_config).stages
  lm = tiny.tiny_lm(tokenizer=tiny.words())
  start = stage.tuned_model(lm)
  assert isinstance(start.method, Method)
  model = start.with_trained(start.method.init(lm, jax.random.key(0)))
  trained = tiny.train(model).trained
  assert (trained["one_vector"]["vector"] != model.trained["one_vector"]["vector"]).any()
  assert len(model.generate(["1 2 3"], max_new_tokens=2)) == 1
  rates = learning_rates(stage.train, model.method.learning_rates, trained)
  assert rates == {"one_vector": 0.02}
  optimizer = make_optimizer(stage.train, rates, model.method.no_decay)
  zeros = jax.tree.map(jnp.zeros_like, trained)
  updates, _ = optimizer.update(zeros, optimizer.init(trained), trained)
  assert not np.any(updates["one_vector"]["vector"]), "a leaf of no_decay is left alone"
  assert decay_mask(trained)["one_vector"]["vector"], "without it the matrix would decay"


def test_a_method_has_its_section_completed_explained_and_checked(one_vector_config):
  completed = run_settings.with_defaults(one_vector_config)
  assert completed.one_vector.repeats == 3 and completed.train.learning_rate.one_vector == 0.02
  text = run_settings.help_text(completed)
  assert "one_vector: One vector before the text." in text
  assert re.search(r"--config.one_vector.repeats=3 +how often the vector is there", text)
  one_vector_config.one_vector = {"repeats": 5}
  (stage,) = run_settings.resolve_run(one_vector_config).stages
  assert stage.tuned_model(tiny.tiny_lm()).num_virtual_tokens == 5
  one_vector_config.one_vector.repeats = 0
  with pytest.raises(UserError, match="config.one_vector.repeats is 0; it must be at least 1"):
    run_settings.resolve_run(one_vector_config)


# --- An export: the trained arrays as numpy keeps them


def write_npz(folder: pathlib.Path, model: TunedModel) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  np.savez(folder / "adapter.npz", **paths.flatten(model.trained))


@pytest.fixture
def workdir(tmp_path):
  """A workdir with an adapter, and the config that made it."""
  tokenizer = make_tokenizer()
  make_model(len(tokenizer)).save_pretrained(tmp_path / "lm")
  tokenizer.save_pretrained(tmp_path / "lm")
  lm = frozen_jax.load_frozen(str(tmp_path / "lm"))
  sections = {"prompt": PromptSettings(length=2)}
  method = PromptTuning.build(lm, sections)
  model = TunedModel(lm, method, method.init(lm, jax.random.key(0)), sections=sections)
  model.save(tmp_path / "run" / "adapter")
  config = load_config(f"{ROOT}/configs/prompt_tuning.py:smoke")
  config.mesh.data = 1
  config.model.update({"name": str(tmp_path / "lm"), "dtype": "float32"})
  return tmp_path / "run", config, model


def test_an_export(workdir, monkeypatch, capsys):
  folder, config, model = workdir
  config.export.format = "npz"
  there = ", ".join(defaults.EXPORT_FORMATS)
  with pytest.raises(UserError, match=f"export.format is 'npz'; it is one of {there}$"):
    export(config, folder)
  (entry,) = eval(f"{{{line_of('An export')}}}", {"write_npz": write_npz}).items()
  monkeypatch.setitem(FORMATS, *entry)
  field = setting("adapter", "of an export", choices=(*defaults.EXPORT_FORMATS, "npz"))
  monkeypatch.setitem(defaults.RUN_KEYS, "export.format", field)  # as run/defaults.py has it
  assert export(config, folder) == {"folder": str(folder / "export"), "format": "npz"}
  assert f"The adapter is in {folder / 'export'}, for numpy.load." in capsys.readouterr().out
  with np.load(folder / "export" / "adapter.npz") as stored:
    np.testing.assert_array_equal(stored["prompt/vectors"], model.trained["prompt"]["vectors"])
  config.export.format = "zip"
  with pytest.raises(UserError, match=f"one of {there}, npz$"):
    export(config, folder)


# --- What the recipes ask for has been done for all that there is


def test_every_entry_has_its_row_in_the_docs():
  docs = lambda name: (ROOT / "docs" / name).read_text()
  assert all(f"`{name}/" in docs("data.md") for name in builtin.BUILTIN_DATASETS)
  formats = (*FORMATS, RE_RANKER)
  assert all(f"| `{name}`" in docs("exports.md") for name in formats)
  assert allowed(defaults.RUN_KEYS["export.format"]).choices == formats
  pages = {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")}
  assert METHODS.keys() - {"zero_shot"} <= pages
