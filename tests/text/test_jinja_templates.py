"""Templates as promptsource writes them: what they render to, and what of them is refused."""

import pathlib

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.text.jinja_templates import JinjaTemplate, load_templates

GLUE = """
dataset: glue
subset: rte
templates:
  03f5: !Template
    answer_choices: yes ||| no
    id: 03f5
    jinja: "{{premise}}\\n\\nDoes this imply \\"{{hypothesis}}\\"? ||| {{ answer_choices[label] }}"
    metadata: !TemplateMetadata
      choices_in_prompt: false
      languages: [en]
      metrics: [Accuracy]
    name: does it imply
    reference: ''
  a1: !Template
    answer_choices: null
    jinja: '{% if label == 0 %} Follow from {{premise}}. ||| {{hypothesis}} {% endif %}'
    name: follow
"""
ROW = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0}


def template_of(text, choices=None):
  return JinjaTemplate("t", text, choices)


def test_a_file_of_promptsource(tmp_path):
  (tmp_path / "templates.yaml").write_text(GLUE)
  templates = load_templates(tmp_path / "templates.yaml")
  assert list(templates) == ["glue/rte"]
  imply, follow = templates["glue/rte"]
  assert (imply.name, follow.name) == ("does it imply", "follow")
  assert imply.render(ROW, "here") == (
    'It rains.\n\nDoes this imply "It is wet."?',
    ("yes",),
    ("yes", "no"),
  )
  assert imply.render(ROW | {"label": 1}, "here").answers == ("no",)
  assert follow.render(ROW, "here") == ("Follow from It rains..", ("It is wet.",), ())
  assert follow.render(ROW | {"label": 1}, "here") is None


def test_a_folder_and_several_documents(tmp_path):
  for name in ("rte", "wnli"):
    (tmp_path / "glue" / name).mkdir(parents=True)
    text = GLUE.replace("subset: rte", f"subset: {name}")
    (tmp_path / "glue" / name / "templates.yaml").write_text(text)
  (tmp_path / "more.yaml").write_text(
    "dataset: a\ntemplates: {x: {jinja: 'b ||| c'}}\n---\ntemplates: {y: {jinja: 'd ||| e'}}\n"
  )
  templates = load_templates(tmp_path)
  assert set(templates) == {"glue/rte", "glue/wnli", "a", ""}
  assert templates["a"][0].name == "x"


def test_choices_may_be_of_the_row():
  template = template_of(
    "{{q}} {{ answer_choices | join(', ') }}? ||| {{ answer_choices[n] }}", "{{a}}|||{{b}}"
  )
  row = {"q": "Which,", "a": " red ", "b": "x ||| y", "n": 1}
  assert template.render(row, "") == ("Which, red, x ||| y?", ("x ||| y",), ("red", "x ||| y"))


def test_bars_in_a_row_divide_nothing():
  assert template_of("{{x}} ||| {{y[0].z}}").render({"x": "a|||b", "y": [{"z": "|||"}]}, "") == (
    "a|||b",
    ("|||",),
    (),
  )


def test_further_parts_are_accepted_answers():
  template = template_of("{{q}} ||| {{ a | join(' ||| ') }}")
  assert template.render({"q": "q", "a": ["x", "y", "x"]}, "").answers == ("x", "y")


@pytest.mark.parametrize("row", [{"q": "a", "a": " "}, {"q": "", "a": "b"}])
def test_no_input_or_no_target(row):
  assert template_of("{{q}} ||| {{a}}").render(row, "") is None


def test_most_frequent_and_choice():
  row = {"a": ["x", "y", "y", "z", "x"]}
  assert template_of("q ||| {{ a | most_frequent | join(' ') }}").render(row, "").answers == (
    "x y",
  )
  for name in ("choice", "random"):
    template = template_of(f"q ||| {{{{ a | most_frequent | {name} }}}}")
    drawn = [template.render(row, "", draw).answers[0] for draw in range(40)]
    assert set(drawn) == {"x", "y"}
    assert drawn == [template.render(row, "", draw).answers[0] for draw in range(40)]


def test_a_row_is_text_and_no_code():
  assert template_of("{{q}} ||| a").render({"q": "{{ 1 + 1 }}"}, "").input == "{{ 1 + 1 }}"


@pytest.mark.parametrize(
  "text, reason",
  [
    ("{{ hypotesis }} ||| a", "'hypotesis' is undefined"),
    ("{{ 1 / label }} ||| a", "division by zero"),
    ("{{ premise.__class__.__mro__ }} ||| a", "unsafe"),
    ("{{ ''.format_map.__globals__ }} ||| a", "unsafe"),
    ("{{ lipsum() }} ||| a", "'lipsum' is undefined"),
    ("{{ xs.append(1) }} ||| a", "unsafe"),
    ("{{ range(10 ** 9) | list }} ||| a", "too big"),
  ],
)
def test_what_fails_names_the_template_and_the_row(text, reason):
  with pytest.raises(UserError, match=f"f.jsonl, line 3: template 't' fails .*{reason}.*premise"):
    template_of(text).render(ROW | {"xs": []}, "f.jsonl, line 3")


def test_a_target_must_be_among_the_choices():
  with pytest.raises(UserError, match="line 3: template 't' gives the target 'maybe'.*yes, no"):
    template_of("q ||| maybe", "yes ||| no").render({}, "line 3")


@pytest.mark.parametrize(
  "text, message",
  [
    ("templates: {a: {jinja: 'x ||| {{'}}", "template 'a' of .*: unexpected .*its line 1"),
    ("templates: {a: {jinja: 'x'}}", "no |||"),
    ("templates: {a: {name: b}}", "template 'a' has no text `jinja`"),
    ("templates: {a: 'x ||| y'}", "template 'a' has no text `jinja`"),
    ("templates: {a: {jinja: 'x ||| y', answer_choices: [a, b]}}", "answer_choices is no text"),
    ("templates: {1: {jinja: 'x|||y', name: n}, 2: {jinja: 'x|||y', name: n}}", "two templates"),
    ("templates: {}", "is empty"),
    ("dataset: 3\ntemplates: {a: {jinja: 'x ||| y'}}", "must be texts"),
    ("- a", "no `templates`"),
    ("dataset: d\ntemplates:\n\t- a", "t.yaml, line 3: malformed YAML"),
    ("a: !!python/object/apply:os.system ['true']", "malformed YAML"),
    ("", "holds no templates"),
    (
      "dataset: d\ntemplates: {a: {jinja: 'x|||y'}}\n---\ndataset: d\ntemplates: {}",
      "'d' a second time",
    ),
  ],
)
def test_files_that_are_refused(tmp_path, text, message):
  (tmp_path / "t.yaml").write_text(text)
  with pytest.raises(UserError, match=message):
    load_templates(tmp_path / "t.yaml")


def test_no_such_file(tmp_path):
  with pytest.raises(UserError, match="no file or folder of templates .*absent"):
    load_templates(tmp_path / "absent")
  with pytest.raises(UserError, match="holds no templates"):
    load_templates(tmp_path)
  (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
  with pytest.raises(UserError, match="not UTF-8"):
    load_templates(pathlib.Path(tmp_path / "latin.yaml"))
