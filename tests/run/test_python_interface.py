"""`load_frozen` and `load_adapter` as a program uses them."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers

import frozen_jax
from frozen_jax.core.errors import UserError
from frozen_jax.run import train
from frozen_jax.sharding.mesh import make_mesh

TEXTS = ["What is the capital of Peru?", "Lima"]


@pytest.fixture(scope="module")
def theirs(tiny):
  """transformers' model of the same folder."""
  return transformers.AutoModelForCausalLM.from_pretrained(tiny).eval()


def test_what_a_frozen_lm_is(lm, tiny):
  assert (lm.name, lm.config.vocab_size, lm.config.context) == (str(tiny), len(lm.tokenizer), 128)
  assert len(lm.fingerprint) == 64 and int(lm.fingerprint, 16) >= 0
  assert lm.params["embed"]["tokens"].shape == (lm.config.vocab_size, 32)
  assert lm.tokenizer.decode(lm.tokenizer("Lima é 1")["input_ids"]) == "Lima é 1"


def test_embed_hidden_and_logits(lm, theirs):
  ids = np.array([[5, 9, 200, 31], [7, 7, 280, 3]])
  x = lm.embed(ids)
  hidden = lm.hidden(x)
  logits = lm.logits(ids)
  assert (x.shape, hidden.shape, logits.shape) == (
    (2, 4, 32),
    (2, 4, 32),
    (2, 4, len(lm.tokenizer)),
  )
  assert logits.dtype == np.float32
  with torch.no_grad():
    expected = theirs(torch.from_numpy(ids), output_hidden_states=True)
  np.testing.assert_allclose(logits, expected.logits, atol=2e-4, rtol=0)
  np.testing.assert_allclose(hidden, expected.hidden_states[-1], atol=2e-4, rtol=0)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padding_changes_nothing_at_real_positions(lm, left):
  ids, mask = np.full((1, 7), 11), np.zeros((1, 7), int)
  real = slice(3, 7) if left else slice(0, 4)
  ids[0, real], mask[0, real] = [5, 9, 200, 31], 1
  expected = lm.logits(np.array([[5, 9, 200, 31]]))
  np.testing.assert_allclose(lm.logits(ids, mask)[:, real], expected, atol=1e-5, rtol=0)


def test_hidden_is_differentiable_in_its_input(lm):
  x = lm.embed(np.array([[5, 9, 200]]))
  gradient = jax.grad(lambda x: lm.hidden(x)[0, -1, 0])(x)
  assert gradient.shape == x.shape and np.abs(gradient).max() > 0


def test_generate_continues_greedily_as_transformers_does(lm, theirs):
  texts = lm.generate(TEXTS, max_new_tokens=8)
  for text, ours in zip(TEXTS, texts, strict=True):
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    with torch.no_grad():
      whole = theirs.generate(ids, max_new_tokens=8, do_sample=False)
    new = whole[0, ids.shape[1] :]
    assert ours == lm.tokenizer.decode(new, skip_special_tokens=True)


def test_generate_samples(lm):
  how = {"max_new_tokens": 8, "temperature": 1.5, "num_samples": 3}
  first, again = (lm.generate(TEXTS, seed=1, **how) for _ in range(2))
  assert first == again
  assert [len(samples) for samples in first] == [3, 3]
  assert len(set(first[0])) == 3
  assert lm.generate(TEXTS, seed=2, **how) != first


@pytest.mark.parametrize(
  "texts, how, message",
  [
    ("one text", {}, "takes a list of texts"),
    (["x"], {"num_samples": 0}, "num_samples is 0"),
    (["x"], {"max_new_tokens": 0}, "max_new_tokens is 0"),
    (["x"], {"max_new_tokens": 500}, "do not fit the model's context of 128"),
    (["x " * 200], {}, "text 1 has .* tokens"),
    (["x", ""], {}, "text 2 is empty"),
    (["x"], {"temperature": -1.0}, "temperature is -1.0"),
  ],
)
def test_generate_refuses(lm, texts, how, message):
  with pytest.raises(UserError, match=message):
    lm.generate(texts, **({"max_new_tokens": 4} | how))


def test_no_texts_no_answers(lm):
  assert lm.generate([], max_new_tokens=4) == []


def test_a_folder_without_a_tokenizer_takes_token_ids(make_folder, lm):
  bare = frozen_jax.load_frozen(str(make_folder(words=False)))
  assert bare.tokenizer is None
  assert bare.fingerprint == lm.fingerprint
  ids = np.array([[5, 9, 200, 31]])
  np.testing.assert_array_equal(bare.logits(ids), lm.logits(ids))
  with pytest.raises(UserError, match="no tokenizer"):
    bare.generate(["Lima"])


def test_keys_and_values_at_8_bits(tiny, lm):
  narrow = frozen_jax.load_frozen(str(tiny), cache="int8")
  assert narrow.config.cache == "int8" and narrow.fingerprint == lm.fingerprint
  assert isinstance(narrow.generate(["What is the capital of Peru?"], max_new_tokens=3)[0], str)


def test_the_fingerprint_is_of_the_stored_weights(tiny, make_folder, lm):
  half = frozen_jax.load_frozen(str(tiny), dtype="bfloat16")
  spread = frozen_jax.load_frozen(str(tiny), mesh=make_mesh(data=2, fsdp=2, tensor=2))
  assert half.params["embed"]["tokens"].dtype == "bfloat16"
  assert {half.fingerprint, spread.fingerprint} == {lm.fingerprint}
  assert frozen_jax.load_frozen(str(make_folder(seed=1))).fingerprint != lm.fingerprint
  ids = np.array([[5, 9, 200, 31]])
  np.testing.assert_allclose(spread.logits(ids), lm.logits(ids), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def adapter(prompt_run, lm):
  return frozen_jax.load_adapter(prompt_run.workdir, lm)


def test_an_adapter_answers(adapter):
  how = {"max_new_tokens": 5, "temperature": 1.0, "num_samples": 2, "seed": 4}
  answers = adapter.generate(TEXTS, **how)
  assert [len(samples) for samples in answers] == [2, 2]
  assert answers == adapter.generate(TEXTS, **how)
  # A text's samples do not depend on what is asked alongside it.
  assert adapter.generate(TEXTS[:1], **how) == answers[:1]


@pytest.mark.parametrize(
  "texts, how, message",
  [
    ("one text", {}, "takes a list of texts"),
    (["x"], {"num_samples": 0}, "num_samples is 0"),
    (["x " * 50], {"max_new_tokens": 64}, "the 4 of the trained prompt do not fit"),
  ],
)
def test_an_adapter_refuses(adapter, texts, how, message):
  with pytest.raises(UserError, match=message):
    adapter.generate(texts, **how)


def test_an_adapter_of_another_base_is_refused(recursive_run, make_folder):
  other = frozen_jax.load_frozen(str(make_folder(seed=1)))
  with pytest.raises(UserError, match="belongs to another base model"):
    frozen_jax.load_adapter(recursive_run.workdir, other)


@pytest.mark.parametrize(
  "change, message",
  [
    *[({key: None}, "is damaged") for key in ("sections", "inputs", "generation")],
    ({"sections": [1]}, "is damaged"),
    ({"inference": {"gate": 1}}, "is damaged"),
    ({"method": "nothing"}, "is of the method 'nothing', which this frozen_jax does not have"),
    ({"method": "lora"}, "are not those that lora trains under its settings"),
    ({"sections": {"prompt": {"length": 2}}}, "are not those that neural_recursion trains"),
    ({"inputs": {"nothing": 1}}, "unknown config key config.data.nothing"),
  ],
)
def test_an_altered_description_is_refused(recursive_run, lm, tmp_path, change, message):
  folder = shutil.copytree(recursive_run.workdir / "adapter", tmp_path / "adapter")
  path = folder / "adapter.json"
  info = json.loads(path.read_text())
  kept = {key: value for key, value in info.items() if change.get(key, "kept") is not None}
  path.write_text(json.dumps(kept | {key: value for key, value in change.items() if value}))
  with pytest.raises(UserError, match=message):
    frozen_jax.load_adapter(folder, lm)


@pytest.mark.parametrize("name", ["nothing", "."])
def test_no_adapter_there(lm, tmp_path, name):
  with pytest.raises(UserError, match="no such folder|no adapter in"):
    frozen_jax.load_adapter(tmp_path / name, lm)


def test_train_takes_a_plain_dict_too(recursive_run):
  """The complete run is found by the config that it was started with."""
  config = json.loads((recursive_run.workdir / "config.json").read_text())
  found = train(config, recursive_run.workdir)
  assert found == json.loads((recursive_run.workdir / "results.json").read_text())
