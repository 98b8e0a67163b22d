"""Tokenizers of folders: the ids of AutoTokenizer, whatever files it has; tokens without rows."""

import io
import json

import pytest
import sentencepiece
import transformers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from frozen_jax.core.errors import UserError
from frozen_jax.text.tokenizer import from_folder

pytestmark = pytest.mark.program

TEXTS = ["The capital of the country", "the  capital, is?", "THE CAPITAL naïve"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "the", "capital", "The", "Capital", "of", "country", ",", "is", "?", "THE"]


def write(folder, name, **values):
  (folder / name).write_text(json.dumps(values))


def assert_same_ids(folder, size):
  """Our tokenizer, which gives the ids of AutoTokenizer."""
  ours = from_folder(folder, size)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  assert ours(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]
  return ours


def word_piece(folder, lowercase):
  tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
  )
  tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("settings", [{"do_lower_case": True}, {"do_lower_case": False}, {}])
@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("config", ["tokenizer_class", "model_type", "neither"])
def test_tokenizer_config_counts_beside_tokenizer_json(tmp_path, settings, lowercase, config):
  word_piece(tmp_path, lowercase)
  named = {"tokenizer_class": "BertTokenizer"} if config == "tokenizer_class" else {}
  write(tmp_path, "tokenizer_config.json", **settings, **named)
  write(tmp_path, "config.json", model_type="llama" if config == "neither" else "bert")
  assert_same_ids(tmp_path, len(WORDS))


def byte_level(folder):
  tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(ALPHABET))}, []))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.save(str(folder / "tokenizer.json"))


ALPHABET = pre_tokenizers.ByteLevel.alphabet()


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "RobertaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("prefix", [True, False])
def test_a_blank_before_the_text(tmp_path, kind, prefix):
  byte_level(tmp_path)
  special = dict.fromkeys(("bos_token", "eos_token", "cls_token", "sep_token", "unk_token"), "!")
  more = {"tokenizer_class": kind, "add_prefix_space": prefix, "add_bos_token": False}
  write(tmp_path, "tokenizer_config.json", **special, **more, pad_token="!", mask_token="!")
  write(tmp_path, "config.json", model_type="roberta" if "Ro" in kind else "gpt2")
  assert_same_ids(tmp_path, len(ALPHABET))


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_vocab_txt_alone(tmp_path, lowercase):
  (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  write(tmp_path, "config.json", model_type="bert")
  if not lowercase:
    write(tmp_path, "tokenizer_config.json", do_lower_case=False)
  ids = assert_same_ids(tmp_path, len(WORDS))("The capital")["input_ids"]
  assert ids == [2, WORDS.index("the" if lowercase else "The"), WORDS.index("capital"), 3]


@pytest.mark.parametrize(
  "name, kind, model", [("spiece.model", "t5", "unigram"), ("tokenizer.model", "llama", "bpe")]
)
@pytest.mark.parametrize("named", [True, False])
def test_a_sentencepiece_model_alone(tmp_path, name, kind, model, named):
  file, corpus = io.BytesIO(), ["the capital of the country is a city", "what is it?"] * 5
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(corpus),
    model_writer=file,
    vocab_size=30,
    model_type=model,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  (tmp_path / name).write_bytes(file.getvalue())
  write(tmp_path, "config.json", model_type=kind)
  if named:
    kinds = {"t5": "T5Tokenizer", "llama": "LlamaTokenizer"}
    write(tmp_path, "tokenizer_config.json", tokenizer_class=kinds[kind])
  ours = assert_same_ids(tmp_path, 30)
  own = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue()).encode("the capital")
  assert ours("the capital", add_special_tokens=False)["input_ids"] == own


@pytest.mark.parametrize("added", [["<image_soft_token>"], [f"<extra_{i}>" for i in range(700)]])
def test_tokens_without_embeddings_load_and_are_refused_in_texts(tmp_path, added):
  byte_level(tmp_path)
  write(tmp_path, "config.json", model_type="llama")
  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
  tokenizer.add_tokens([AddedToken(token, special=True) for token in added])
  tokenizer.save_pretrained(tmp_path)
  size = len(ALPHABET)
  ours = from_folder(tmp_path, size)
  assert len(ours) == size + len(added)
  assert ours(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
  last = added[-1]
  ask = f"holds the token '{last}', whose id {size + len(added) - 1} is beyond the"
  for call in (
    lambda: ours(f"a {last}"),
    lambda: ours(["a", f"{last} b"], padding=False),
    lambda: ours.encode(f"{last}"),
  ):
    with pytest.raises(UserError, match=ask):
      call()
  ours.save_pretrained(tmp_path / "again")
  again = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
  assert "Refusing" not in json.dumps(again)


def test_a_models_own_code_is_not_run(tmp_path):
  byte_level(tmp_path)
  write(tmp_path, "config.json", model_type="llama")
  code = {"AutoTokenizer": ["own.OwnTokenizer", None]}
  write(tmp_path, "tokenizer_config.json", auto_map=code, tokenizer_class="OwnTokenizer")
  (tmp_path / "own.py").write_text("raise SystemExit('run')")
  assert from_folder(tmp_path, len(ALPHABET)).encode("ab") == [
    sorted(ALPHABET).index("a"),
    sorted(ALPHABET).index("b"),
  ]
