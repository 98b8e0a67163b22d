"""In the chat form an answer ends as the chat template itself ends it, and only once."""

import dataclasses

import pytest
import tokenizers
import transformers

from frozen_jax.data.settings import InputSettings
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.models.generation import end_ids
from frozen_jax.text.templates import end_of_turn

EXAMPLE = {"question": "What is it?", "answers": ["a city"]}
EOS = "<eos>"
TURNS = "{% for m in messages %}"
CHATML = (
  TURNS + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
  "{{ '<bos>' }}" + TURNS + "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
  "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA3 = (
  "{{ '<bos>' }}" + TURNS + "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
  " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
  "{% if add_generation_prompt %}"
  "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PHI3 = (
  TURNS + "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL = (
  "{{ '<bos>' }}" + TURNS + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
  "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
BARE = TURNS + "{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
RAISES = "{{ raise_exception('no answers') if messages|length > 1 }}{{ messages[0].content }}"
SPECIAL = ("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>")
SPECIAL += ("<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|end|>", "<bos>", EOS)
ENDS = {
  "ChatML": (CHATML, "<|im_end|>"),
  "Gemma": (GEMMA, "<end_of_turn>"),
  "Llama 3": (LLAMA3, "<|eot_id|>"),
  "Phi-3": (PHI3, "<|end|>"),
  "Mistral": (MISTRAL, EOS),
}


def chat_tokenizer(template, eos=EOS):
  bytes_ = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  names = [*SPECIAL, *sorted(bytes_)]
  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE({name: index for index, name in enumerate(names)}, [])
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = tokenizers.decoders.ByteLevel()
  inner.add_special_tokens(list(SPECIAL))
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos)
  tokenizer.chat_template = template
  return tokenizer


@pytest.mark.parametrize("eos", [EOS, "<|im_end|>"])
@pytest.mark.parametrize("family", ENDS)
def test_a_row_is_what_the_template_renders(family, eos):
  template, end = ENDS[family]
  tokenizer = chat_tokenizer(template, eos)
  end = eos if end == EOS else end
  row = QuestionTask(tokenizer, "chat").encode(EXAMPLE)
  turns = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "a city"},
  ]
  whole = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)[
    "input_ids"
  ]
  text = tokenizer.decode(row.tokens)
  assert text.endswith(f"a city{end}") and text.count("a city") == 1
  after = tokenizer.decode(whole).replace("] a", "]a").removeprefix(text)
  assert after in ("", "\n", f"\n{eos}"), "what follows the end of the turn"
  assert tokenizer.decode(row.tokens[row.target_start :]) == f"a city{end}"


@pytest.mark.parametrize("template", [BARE, RAISES, None])
def test_without_an_end_of_turn_it_is_the_tokenizers(template):
  tokenizer = chat_tokenizer(template)
  assert end_of_turn(tokenizer) is None
  if template is not None:
    row = QuestionTask(tokenizer, "chat").encode(EXAMPLE)
    assert tokenizer.decode(row.tokens).endswith(f"a city{EOS}")


@pytest.mark.parametrize("family", ENDS)
def test_other_templates_end_with_the_tokenizers_end_token(family):
  tokenizer = chat_tokenizer(ENDS[family][0])
  row = QuestionTask(tokenizer, "plain").encode(EXAMPLE)
  assert tokenizer.decode(row.tokens[row.target_start :]) == f" a city{EOS}"


@dataclasses.dataclass
class Model:
  """What `end_ids` asks of a tuned model."""

  lm: object
  trained: dict
  inputs: InputSettings


@pytest.mark.parametrize("family", ENDS)
def test_what_was_trained_in_the_chat_form_ends_there(family):
  template, end = ENDS[family]
  tokenizer = chat_tokenizer(template)
  eos, of_turn, other = (tokenizer.convert_tokens_to_ids(one) for one in (EOS, end, "<bos>"))
  lm = type("LM", (), {"tokenizer": tokenizer, "end_ids": (other,)})
  ends = lambda trained, how: set(end_ids(Model(lm, trained, InputSettings(template=how))))
  assert ends({"some": 1}, "chat") == {other, eos, of_turn}
  assert ends({"some": 1}, "plain") == {other, eos}
  assert ends({}, "chat") == {other}, "the unmodified LM stops as `generate` of transformers"
