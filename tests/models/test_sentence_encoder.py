"""Folders of sentence-transformers: vectors equal its `encode_query` and `encode_document`."""

import json

import numpy as np
import pytest
import sentence_transformers
import tokenizers
import torch
import transformers
from sentence_transformers.sentence_transformer import modules
from tokenizers.processors import TemplateProcessing

from frozen_jax.core.errors import UserError
from frozen_jax.models.frozen_encoder import load_encoder
from frozen_jax.pipelines.retrieve_read.retrieve import embedding
from frozen_jax.sharding.mesh import make_mesh
from tests.backbones import encoder_cases

pytestmark = pytest.mark.program

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Query", "query", "passage", ":", "what", "What"]
WORDS += ["is", "the", "capital", "Capital", "of", "Peru", "peru", "Lima", "lima", "river", "a"]
TEXTS = [
  "What is the Capital of Peru",
  "  Lima is the capital of Peru . The river is a river of the capital of Peru  ",
  "river",
  "the river of Lima query passage",
]
PROMPTS_FILE = "config_sentence_transformers.json"
PROMPTS = {"query": "query: ", "document": "passage: the "}
NOT_POOLED = {"prompts": PROMPTS, "prompt_counts": False}


def save_tokenizer(path, **settings):
  """A cased tokenizer of whole words."""
  words = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
  )
  words.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  words.post_processor = TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
  )
  named = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP")}
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, model_max_length=16, **named, **settings
  ).save_pretrained(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A folder of a random BERT and a RoBERTa."""
  made = {}
  for kind in ("Bert", "Roberta"):
    path = made[kind] = tmp_path_factory.mktemp(kind)
    save_tokenizer(path)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
      vocab_size=len(WORDS),
      hidden_size=24,
      num_hidden_layers=2,
      num_attention_heads=3,
      intermediate_size=40,
      max_position_embeddings=40,
      pad_token_id=0,
      initializer_range=0.4,
    )
    getattr(transformers, f"{kind}Model")(config).eval().save_pretrained(path)
  return made


def save(base, folder, kind="Bert", mode="mean", normalise=True, prompt_counts=True, **how):
  steps = [
    modules.Transformer(str(base[kind])),
    modules.Pooling(24, mode, include_prompt=prompt_counts),
    *([modules.Normalize()] if normalise else []),
  ]
  sentence_transformers.SentenceTransformer(modules=steps, device="cpu", **how).save(str(folder))
  return folder


def edit(path, **values):
  known = json.loads(path.read_text()) if path.is_file() else {}
  path.write_text(json.dumps(known | values))


CASES = {
  "prompts": ({"prompts": PROMPTS}, {}),
  "no prompts, not normalised": ({"normalise": False, "mode": "cls"}, {}),
  "a default prompt": ({"prompts": PROMPTS, "default_prompt_name": "query"}, {}),
  "a prompt for passages": ({"prompts": {"query": "query: ", "passage": "the "}}, {}),
  "max_seq_length": ({"prompts": PROMPTS}, {"max_seq_length": 6}),
  "max_seq_length above the tokenizer's": ({}, {"max_seq_length": 25}),
  "lower-cased": ({"prompts": {"query": "Query: "}}, {"do_lower_case": True}),
  "roberta": (
    {"kind": "Roberta", "mode": "max", "prompts": PROMPTS},
    {"max_seq_length": 8, "do_lower_case": True},
  ),
  "prompts that are not pooled": (NOT_POOLED, {}),
  "cls after a prompt": ({**NOT_POOLED, "mode": "cls"}, {}),
  "lasttoken": ({"prompts": PROMPTS, "mode": "lasttoken"}, {}),
  "weightedmean": ({"prompts": PROMPTS, "mode": "weightedmean"}, {}),
  "mean_sqrt_len_tokens": ({"mode": "mean_sqrt_len_tokens", "normalise": False}, {}),
  "truncated": ({"prompts": PROMPTS, "truncate_dim": 8}, {}),
  "truncated, not normalised": ({"mode": "max", "normalise": False, "truncate_dim": 5}, {}),
  "truncated to more than there is": ({"truncate_dim": 99}, {}),
  "another similarity": ({"prompts": PROMPTS, "similarity_fn_name": "dot"}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_vectors_equal_those_of_sentence_transformers(case, base, tmp_path):
  how, transformer = CASES[case]
  folder = save(base, tmp_path / "saved", **how)
  edit(folder / "sentence_bert_config.json", **transformer)
  theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
  ours = load_encoder(str(folder))
  for name in ("encode_query", "encode_document", "encode"):
    expected = getattr(theirs, name)(TEXTS)
    np.testing.assert_allclose(getattr(ours, name)(TEXTS), expected, atol=1e-5, err_msg=name)
  expected = theirs.encode_document(TEXTS)
  dense = embedding(ours, 30, make_mesh())(TEXTS)
  np.testing.assert_allclose(dense, expected, atol=1e-5)
  prompted = embedding(ours, 30, make_mesh(), "what is ")(TEXTS[:1])
  np.testing.assert_allclose(prompted, theirs.encode(TEXTS[:1], prompt="what is "), atol=1e-5)
  if how.get("prompts") or transformer:
    plain = load_encoder(str(save(base, tmp_path / "plain", **how | {"prompts": {}})))
    assert any(
      np.abs(getattr(ours, name)(TEXTS) - plain.encode(TEXTS)).max() > 0.01
      for name in ("encode_query", "encode_document")
    ), "the settings matter"
    assert ours.fingerprint == plain.fingerprint
    assert ours.texts_fingerprint != plain.texts_fingerprint
  width = min(how.get("truncate_dim", 24), 24)
  assert ours.encode_query([]).shape == (0, width) and dense.shape[1] == width


@pytest.mark.parametrize(
  "how, settings",
  [
    ({"mode": "lasttoken", "prompts": PROMPTS}, {}),
    (
      {"mode": "lasttoken", "prompts": PROMPTS, "prompt_counts": False},
      {"truncation_side": "left"},
    ),
    ({"mode": "cls", "prompts": PROMPTS, "prompt_counts": False}, {}),
    ({"mode": "weightedmean", "prompts": PROMPTS}, {}),
    ({"mode": "lasttoken", "kind": "Bert"}, {}),
  ],
)
def test_a_tokenizer_that_pads_on_the_left(how, settings, base, tmp_path):
  """BERT's own positions count the padding, so its texts are compared one by one."""
  folder = save(base, tmp_path / "saved", **{"kind": "Roberta"} | how)
  edit(folder / "tokenizer_config.json", padding_side="left", **settings)
  edit(folder / "sentence_bert_config.json", max_seq_length=9)
  theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
  assert theirs.tokenizer.padding_side == "left"
  ours, size = load_encoder(str(folder)), 1 if "kind" in how else len(TEXTS)
  for name in ("encode_query", "encode_document"):
    expected = getattr(theirs, name)(TEXTS, batch_size=size)
    np.testing.assert_allclose(getattr(ours, name)(TEXTS), expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  "kind, architecture, pooling",
  [
    ("bert", "BertForPreTraining", "mean"),
    ("roberta", "RobertaForMaskedLM", "mean"),
    ("roberta", "RobertaForCausalLM", "lasttoken"),
    ("electra", None, "mean"),
    ("t5", "T5EncoderModel", "mean"),
    ("modernbert", "ModernBertForMaskedLM", "mean"),
  ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_folder_that_is_not_of_sentence_transformers(kind, architecture, pooling, side, tmp_path):
  """Without modules.json; BERT's and ELECTRA's positions count padding on the left."""
  changes = {} if kind in ("t5", "modernbert") else {"pad_token_id": 0}
  encoder_cases.make(kind, **changes).save_pretrained(tmp_path)
  save_tokenizer(tmp_path, padding_side=side)
  edit(tmp_path / "config.json", architectures=architecture and [architecture])
  theirs = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
  size = 1 if side == "left" and kind in ("bert", "electra") else len(TEXTS)
  expected = theirs.encode_query(TEXTS, batch_size=size)
  ours = load_encoder(str(tmp_path))
  assert ours.config.pooling == pooling and "pooler" not in ours.params
  np.testing.assert_allclose(ours.encode_query(TEXTS), expected, atol=1e-5)
  batch = ours.tokenizer(TEXTS, padding=True, truncation=True, return_tensors="np")
  tokens, mask = batch["input_ids"], batch["attention_mask"]
  np.testing.assert_allclose(ours.pool(ours.hidden(tokens, mask), mask), expected, atol=1e-5)


def test_files_of_older_versions(base, tmp_path):
  """A flag for each pooling, no modality, no task, the settings named after the model."""
  folder = save(base, tmp_path / "saved", kind="Roberta", prompts=PROMPTS)
  (folder / "sentence_bert_config.json").unlink()
  edit(folder / "sentence_roberta_config.json", max_seq_length=7, do_lower_case=False)
  flags = {f"pooling_mode_{name}": False for name in ("mean_tokens", "max_tokens", "lasttoken")}
  values = {"word_embedding_dimension": 24, "pooling_mode_cls_token": True} | flags
  (folder / "1_Pooling" / "config.json").write_text(json.dumps(values))
  theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
  ours = load_encoder(str(folder))
  np.testing.assert_allclose(ours.encode_query(TEXTS), theirs.encode_query(TEXTS), atol=1e-5)
  assert ours.config.pooling == "cls" and ours.max_length == 7


@pytest.mark.parametrize(
  "file, values, said",
  [
    ("sentence_bert_config.json", {"max_seq_length": "long"}, "max_seq_length = 'long'"),
    ("sentence_bert_config.json", {"query_length": 8}, "query_length = 8"),
    (
      "sentence_bert_config.json",
      {"processing_kwargs": {"text": {"truncation": False}}},
      "processing_kwargs = ",
    ),
    (
      "sentence_bert_config.json",
      {"tokenizer_args": {"do_lower_case": True}},
      "tokenizer_args.do_lower_case = True",
    ),
    (PROMPTS_FILE, {"prompts": ["a"]}, "prompts is no object of texts"),
    (PROMPTS_FILE, {"default_prompt_name": "q"}, "default_prompt_name is 'q'"),
    (PROMPTS_FILE, {"truncate_dim": 0}, "truncate_dim is 0, where a number of dimensions"),
    (PROMPTS_FILE, {"truncate_dim": "8"}, "truncate_dim is '8'"),
    ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "Normalize"),
    ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, "does not understand"),
    (
      "1_Pooling/config.json",
      {"pooling_mode": "weightedmean", "include_prompt": False},
      "a pooling that frozen_jax does not understand",
    ),
  ],
)
def test_what_is_not_understood_is_named(base, tmp_path, file, values, said):
  folder = save(base, tmp_path / "saved")
  edit(folder / file, **values)
  with pytest.raises(UserError, match=said) as error:
    load_encoder(str(folder))
  assert "\n" not in str(error.value)


def test_settings_that_say_nothing(base, tmp_path):
  folder = save(base, tmp_path / "saved")
  expected = load_encoder(str(folder)).encode_query(TEXTS)
  edit(
    folder / "sentence_bert_config.json",
    max_seq_length=None,
    do_lower_case=False,
    model_args={"attn_implementation": "eager"},
    query_expansion=None,
  )
  prompts = folder / "config_sentence_transformers.json"
  edit(prompts, prompts={"query": None}, default_prompt_name=None, truncate_dim=None)
  edit(prompts, similarity_fn_name="euclidean", new_setting=3, model_type="SentenceTransformer")
  np.testing.assert_array_equal(load_encoder(str(folder)).encode_query(TEXTS), expected)


def test_a_module_that_cannot_be_computed_is_named(base, tmp_path):
  folder = save(base, tmp_path / "saved")
  listed = json.loads((folder / "modules.json").read_text())
  listed.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "a.b.Dense"})
  (folder / "modules.json").write_text(json.dumps(listed))
  with pytest.raises(UserError, match="modules.json has a step .*Dense"):
    load_encoder(str(folder))


def test_mistakes(base, tmp_path):
  folder = save(base, tmp_path / "saved")
  with pytest.raises(UserError, match="put the one text into a list"):
    load_encoder(str(folder)).encode_query("what")
  for name in ("tokenizer.json", "tokenizer_config.json"):
    (folder / name).unlink()
  with pytest.raises(UserError, match="has no tokenizer"):
    load_encoder(str(folder)).encode_query(["what"])
