"""Tasks: what of a row is a target, by the small tokenizer and by real ones."""

import copy

import numpy as np
import pytest
import tokenizers
import transformers

from frozen_jax.core.errors import UserError
from frozen_jax.data.batches import scoring_batches, training_batches
from frozen_jax.data.settings import InputSettings
from frozen_jax.data.sources import open_source
from frozen_jax.data.tasks import EncoderTokenizer, LanguageModelTask, QuestionTask, make_task

EXAMPLE = {"question": "what is 7", "answers": ["red", "green blue"], "id": "x"}


def test_targets_are_the_first_answer_and_the_end(words):
  task = QuestionTask(words)
  row = task.encode(EXAMPLE)
  assert words.decode(row.tokens) == "Question: what is 7 Answer: red <end>"
  assert words.decode(row.tokens[row.target_start :]) == "red <end>"
  assert task.prompt(EXAMPLE).tokens == list(row.tokens[: row.target_start])
  assert task.answers(EXAMPLE) == ["red", "green blue"]
  assert task.question(EXAMPLE) == "what is 7"


def test_an_input_is_the_whole_prompt(words):
  task = QuestionTask(words)
  row = task.encode({"input": "what is 3", "target": "green blue"})
  assert words.decode(row.tokens) == "what is 3 green blue <end>"
  assert row.target_start == 3
  assert task.answers({"input": "x", "target": "green blue"}) == ["green blue"]
  assert task.answers({"question": "x"}) == []


def test_a_row_without_an_answer_cannot_be_trained_on(words):
  with pytest.raises(UserError, match="'7' has no answers"):
    QuestionTask(words).encode({"question": "what", "id": "7"})


def test_which_task_a_source_is_for(words):
  settings = InputSettings(template="Q {question}", lengths=(8, 16))
  task = make_task([EXAMPLE], words, settings)
  assert isinstance(task, QuestionTask) and task.lengths == (8, 16)
  assert words.decode(task.prompt(EXAMPLE).tokens).endswith("what is 7")
  assert isinstance(make_task([{"text": "red"}], words, settings), LanguageModelTask)


def test_bad_options(words):
  with pytest.raises(UserError, match="data.lengths"):
    QuestionTask(words, lengths=(64, 32))
  with pytest.raises(UserError, match="no tokenizer"):
    QuestionTask(None)
  with pytest.raises(UserError, match="no chat template"):
    QuestionTask(words, "chat").prompt(EXAMPLE)


def test_chat(words):
  chat = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words.backend_tokenizer, eos_token="<end>", unk_token="<unk>"
  )
  chat.chat_template = (
    "{% for m in messages %}Question: {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}Answer: {% endif %}"
  )
  row = QuestionTask(chat, "chat").encode(EXAMPLE)
  assert chat.decode(row.tokens) == "Question: what is 7 Answer: red <end>"
  assert row.target_start == 5


def test_a_tokenizer_with_special_tokens():
  """One that puts a start token before each text and an end token after it, as some do."""
  ids = {"<end>": 0, "<start>": 1, "▁Q": 2, "▁red": 3, "▁": 4, "<unk>": 5}
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  inner.post_processor = tokenizers.processors.TemplateProcessing(
    single="<start> $A", special_tokens=[("<start>", 1)]
  )
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, eos_token="<end>", unk_token="<unk>"
  )
  row = QuestionTask(tokenizer, "{question}").encode({"question": "Q", "answers": ["red"]})
  assert list(row.tokens) == [1, 2, 3, 0] and row.target_start == 2


def test_windows_hold_every_token_once(words):
  texts = [{"text": "1 2 3 4 5"}, {"text": ""}, {"text": "6 7"}, {"text": "8 9"}]
  task = LanguageModelTask(words, (4,))
  windows = task.prepare(texts)
  stream = np.concatenate([windows[index].tokens for index in range(len(windows))])
  assert words.decode(stream) == "1 2 3 4 5 <end> 6 7 <end> 8 9 <end>"
  assert [len(windows[index].tokens) for index in range(len(windows))] == [4, 4, 4]
  row = windows[1]
  assert row.target_start == 1 and words.decode(row.tokens) == "5 <end> 6 7"
  assert len(LanguageModelTask(words, (11,)).prepare(texts)) == 1  # one token alone is no window
  with pytest.raises(IndexError):
    windows[3]


@pytest.mark.parametrize("lengths, sizes", [((4,), 4 * [4]), ((2,), 12 * [2]), ((12,), [12, 2])])
def test_windows_begin_as_texts_do(words, lengths, sizes):
  """With the bos token where the tokenizer puts one (Gemma, Llama 3), and not where it has one."""
  texts = [{"text": "1 2 3 4 5"}, {"text": "6 7"}, {"text": "8 9"}]
  begins = copy.deepcopy(words)
  begins.add_special_tokens({"bos_token": "<unk>"})
  rows = LanguageModelTask(begins, (4,)).prepare(texts)
  assert words.decode(rows[0].tokens) == "1 2 3 4"
  begins.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="<unk> $A", special_tokens=[("<unk>", begins.bos_token_id)]
  )
  windows = LanguageModelTask(begins, lengths).prepare(texts)
  rows = [windows[index] for index in range(len(windows))]
  assert [len(row.tokens) for row in rows] == sizes
  assert all(row.tokens[0] == begins.bos_token_id and row.target_start == 1 for row in rows)
  stream = np.concatenate([row.tokens[1:] for row in rows])
  assert words.decode(stream) == "1 2 3 4 5 <end> 6 7 <end> 8 9 <end>"


def test_no_text_to_model(words):
  with pytest.raises(UserError, match="no text to train on"):
    LanguageModelTask(words, (4,)).prepare([{"text": ""}])
  with pytest.raises(UserError, match="row 1 has no text"):
    LanguageModelTask(words, (4,)).prepare([EXAMPLE])


def test_real_tokenizer(smollm2, cache):
  tokenizer = smollm2.tokenizer
  source = open_source("world_facts/train")
  task = QuestionTask(tokenizer)
  for index in range(0, len(source), 50):
    example = source[index]
    row = task.encode(example)
    decoded = tokenizer.decode(row.tokens[row.target_start :])
    assert decoded == f" {example['answers'][0]}{tokenizer.eos_token}"
    prompt = task.prompt(example).tokens
    assert prompt == list(row.tokens[: row.target_start])
    assert len(row.tokens) <= 32  # one shape for the whole default run
  chat = QuestionTask(tokenizer, "chat").encode(source[0])
  text = tokenizer.decode(chat.tokens[: chat.target_start])
  assert source[0]["question"] in text and text.endswith("assistant\n")


def test_a_token_that_the_model_does_not_have_is_named(words):
  limit = words.convert_tokens_to_ids("green")  # ids from "green" on are beyond the table
  settings = InputSettings(template="{question}", lengths=(8, 16))
  task = make_task([EXAMPLE], words, settings, vocab_size=limit)
  assert len(task.encode(EXAMPLE).tokens) == 5
  spoilt = EXAMPLE | {"answers": ["red blue"]}
  said = f"example 'x': token 5 has the id {limit + 1} .'blue'., and the model has ids from 0 to"
  with pytest.raises(UserError, match=said):
    task.encode(spoilt)
  with pytest.raises(UserError, match="example 'x': token 5"):
    next(training_batches([spoilt] * 4, task, 2))
  with pytest.raises(UserError, match="example 'x': token 5"):
    scoring_batches([EXAMPLE, spoilt], task, 2)
  texts = [{"text": "red is red"}, {"text": "is it green"}]
  windows = make_task(texts, words, settings, vocab_size=limit)
  with pytest.raises(UserError, match="row 2: token 3 has the id .*'green'"):
    windows.prepare(texts)
  assert len(windows.prepare(texts[:1])) == 1
  encoder = EncoderTokenizer(words, 3, limit)
  assert encoder.ids("red is red blue") == (words("red is red")["input_ids"], True)
  with pytest.raises(UserError, match="'is blue' .encoder.: token 2"):
    encoder.ids("is blue")


def test_training_batches_name_a_token_of_a_later_row(words):
  limit = words.convert_tokens_to_ids("green")
  task = QuestionTask(words, lengths=(8, 16), vocab_size=limit)
  rows = [EXAMPLE] * 600 + [EXAMPLE | {"id": "late", "answers": ["green"]}]
  with pytest.raises(UserError, match="example 'late': token"):
    batches = training_batches(rows, task, 8, seed=1)
    for _ in range(76):
      next(batches)
