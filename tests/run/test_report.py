"""The table of a run as text."""

from frozen_jax.run.report import table


def test_intervals_stand_behind_the_exact_match_of_those_that_have_one():
  own = {"exact_match": 50.0, "exact_match_low": 41.04, "exact_match_high": 58.96, "loss": 1.25}
  head, first, second = table({"reader": own, "plain": {"loss": 2.0}}).splitlines()
  assert head.split() == ["exact_match", "95%", "loss"]
  assert first.split() == ["reader", "50.000", "41.0-59.0", "1.250"]
  assert second.split() == ["plain", "-", "-", "2.000"]
  assert len(head) == len(first) == len(second)


def test_figures_without_intervals_have_no_such_column():
  assert "95%" not in table({"lm": {"loss": 2.0, "exact_match": 10.0}})
