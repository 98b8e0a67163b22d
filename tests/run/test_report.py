"""A record as text, and a table's rows out of it."""

from frozen_jax.run.records import table_rows
from frozen_jax.run.report import record_text, row_titles, table

RECORD = {
  "metrics": {"loss": 1.0},
  "baseline": {"name": "lm", "loss": 2.0},
  "rows": {"first": {"loss": 1.5}},
  "table": {"rows": ["lm", "first", "second"], "metrics": "second", "baseline": "lm"},
}


def test_intervals_stand_behind_the_exact_match_of_those_that_have_one():
  own = {"exact_match": 50.0, "exact_match_low": 41.04, "exact_match_high": 58.96, "loss": 1.25}
  head, first, second = table({"reader": own, "plain": {"loss": 2.0}}).splitlines()
  assert head.split() == ["exact_match", "95%", "loss"]
  assert first.split() == ["reader", "50.000", "41.0-59.0", "1.250"]
  assert second.split() == ["plain", "-", "-", "2.000"]
  assert len(head) == len(first) == len(second)


def test_figures_without_intervals_have_no_such_column():
  assert "95%" not in table({"lm": {"loss": 2.0, "exact_match": 10.0}})


def test_the_rows_of_a_record_come_in_the_order_of_its_table():
  expected = {"lm": {"loss": 2.0}, "first": {"loss": 1.5}, "second": {"loss": 1.0}}
  assert list(table_rows(RECORD).items()) == list(expected.items())


def test_a_model_that_is_its_own_baseline_is_one_row():
  alone = {
    "metrics": {"loss": 1.0},
    "baseline": {"name": "own", "loss": 1.0},
    "table": {"rows": ["own"], "metrics": "own", "baseline": "own"},
  }
  assert table_rows(alone) == {"own": {"loss": 1.0}}


def test_stages_are_titled_with_their_method():
  text = "\n".join(record_text(RECORD, row_titles({"second": "lora"})))
  assert [line.split()[0] for line in text.splitlines()[1:]] == ["lm", "first", "second:"]
  assert text.splitlines()[-1].split() == ["second:", "lora", "1.000"]


def test_held_out_data_have_a_table_of_their_own():
  record = RECORD | {"held_out": {"a.jsonl": {"lm": {"score": 1.0}, "second": {"score": 3.0}}}}
  text = "\n".join(record_text(record, row_titles({"second": "lora"})))
  _, _, below = text.partition("held out: a.jsonl\n")
  assert [line.split()[0] for line in below.splitlines()] == ["score", "lm", "second:"]


def test_the_difference_to_the_baseline_is_a_line():
  paired = {"lm": {"difference": 1.25, "difference_low": -0.5, "difference_high": 3.0}}
  assert record_text(RECORD | {"paired": paired}, {})[-1] == (
    "exact match against lm: +1.2 points (95%: -0.5 to +3.0)"
  )
