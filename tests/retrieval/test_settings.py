"""The sections of retrieval and packing: their values from a config, and what they refuse."""

import subprocess
import sys

import pytest

from frozen_jax.config import section
from frozen_jax.core.errors import UserError
from frozen_jax.retrieval.settings import PackingSettings, ReaderTemplate, RetrievalSettings

SECTIONS = (RetrievalSettings, PackingSettings)


@pytest.mark.parametrize("kind", SECTIONS)
def test_the_values_of_a_section_resolve_to_it(kind):
  assert section.resolve(kind, section.section_values(kind()), "x") == kind()
  assert section.resolve(kind, section.identity(kind()), "x") == kind()  # lists for tuples
  for line in section.help_lines(kind(), "x"):
    assert line.partition("=")[2].split("  ")[-1].strip()


def test_values_of_a_config():
  values = {"retrievers": ["bm25"], "fusion": "weighted_sum", "weights": [2.0], "depth": 7}
  settings = section.resolve(RetrievalSettings, values, "retrieval")
  assert settings == RetrievalSettings(("bm25",), "weighted_sum", (2.0,), depth=7)
  packing = section.resolve(PackingSettings, {"template": {"separator": "|"}}, "packing")
  assert packing.template.fill("who?", ["a", "b"]) == "a|b\n\nQuestion: who?\nAnswer:"


def test_a_passage_has_its_title_only_if_there_is_one():
  template = ReaderTemplate(bare="({text})")
  assert template.fill_passage("T", "x") == "T: x" and template.fill_passage("", "x") == "(x)"


def test_weights_of_another_fusion_do_not_matter():
  assert RetrievalSettings(("bm25",), weights=()).fusion == "reciprocal_ranks"


@pytest.mark.parametrize(
  "kind, values, message",
  [
    (
      RetrievalSettings,
      {"retrievers": ("bm25", "web")},
      "retrievers holds 'web'; it is one of",
    ),
    (RetrievalSettings, {"retrievers": ()}, "reader.retrievers is empty; give some"),
    (
      RetrievalSettings,
      {"fusion": "vote"},
      "fusion is 'vote'; it is one of reciprocal_ranks",
    ),
    (RetrievalSettings, {"fusion": "weighted_sum", "weights": (1.0,)}, "give one to each"),
    (
      RetrievalSettings,
      {"fusion": "weighted_sum", "weights": (1.0, -1.0)},
      "weights holds -1.0",
    ),
    (RetrievalSettings, {"fusion": "weighted_sum", "weights": (0.0, 0.0)}, "not all 0"),
    (RetrievalSettings, {"depth": 0}, "reader.depth is 0; it must be at least 1"),
    (PackingSettings, {"passage_order": "random"}, "one of best_first, best_last"),
    (PackingSettings, {"overflow": "drop"}, "one of error, skip, truncate"),
    (PackingSettings, {"max_passages": -1}, "max_passages is -1"),
    (ReaderTemplate, {"prompt": "{question}"}, "must hold passages, question"),
    (ReaderTemplate, {"passage": "{title} {body}"}, "must hold text"),
    (ReaderTemplate, {"prompt": "{passages} {question"}, "malformed"),
  ],
)
def test_values_that_are_refused(kind, values, message):
  with pytest.raises(UserError, match=message):
    kind(**values)


def test_the_module_imports_no_jax():
  code = "import sys; import frozen_jax.retrieval.settings; print('jax' in sys.modules)"
  assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
