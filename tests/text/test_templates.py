import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.text.templates import (
  added_by_chat,
  answer_separator,
  make_template,
  prompt_ids,
)


def test_named_templates():
  assert make_template("plain").fill("Why?") == "Question: Why?\nAnswer:"
  assert make_template("chat").chat and make_template("chat").fill("Why?") == "Why?"


def test_own_template_keeps_braces_of_the_question():
  assert make_template("Q: {question} {{x}}").fill("What is {y}?") == "Q: What is {y}? {x}"


@pytest.mark.parametrize("name", ["plian", "{questions}", "{question} {answer}", "{question", "{}"])
def test_other_templates_are_refused(name):
  with pytest.raises(UserError, match="template"):
    make_template(name)


def test_no_second_space_before_an_answer():
  assert [answer_separator(text) for text in ("A:", "A:\n", "A: ", "")] == [" ", "", "", ""]


def test_what_the_chat_form_adds(smollm2):
  tokenizer = smollm2.tokenizer
  more = added_by_chat(tokenizer)
  assert more > 0
  for question in ("Why?", "Which rivers cross Peru?"):
    plain = prompt_ids(tokenizer, make_template("plain").fill(question))
    assert len(prompt_ids(tokenizer, question, chat=True)) == len(plain) + more
