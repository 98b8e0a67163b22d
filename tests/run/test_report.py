"""A record as text, and a table's rows out of it."""

import json
import re
import shlex

import pytest

from frozen_jax.evaluation.gains import Gain
from frozen_jax.evaluation.scores import Scores
from frozen_jax.run.results import records
from frozen_jax.run.results.gains import gain_records
from frozen_jax.run.results.records import (
  command_line,
  rows_with_training,
  side_by_side,
  table_rows,
  units_of,
)
from frozen_jax.run.results.report import (
  COLUMNS,
  closing_tip,
  explained,
  metrics_table,
  record_text,
  row_titles,
)

RECORD = {
  "metrics": {"loss": 1.0},
  "baseline": {"name": "lm", "loss": 2.0},
  "rows": {"first": {"loss": 1.5}},
  "table": {"rows": ["lm", "first", "second"], "metrics": "second", "baseline": "lm"},
}


def test_intervals_follow_the_exact_match_of_those_that_have_one():
  own = {"exact_match": 50.0, "exact_match_low": 41.04, "exact_match_high": 58.96, "loss": 1.25}
  head, first, second = metrics_table({"reader": own, "plain": {"loss": 2.0}}).splitlines()
  assert head.split() == ["exact_match", "95%", "loss"]
  assert first.split() == ["reader", "50.000", "41.0-59.0", "1.250"]
  assert second.split() == ["plain", "-", "-", "2.000"]
  assert len(head) == len(first) == len(second)


def test_figures_without_intervals_have_no_such_column():
  assert "95%" not in metrics_table({"lm": {"loss": 2.0, "exact_match": 10.0}})


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
  shown, _, meaning = text.partition("\n\n")
  assert [line.split()[0] for line in shown.splitlines()[1:]] == ["lm", "first", "second:"]
  assert shown.splitlines()[-1].split() == ["second:", "lora", "1.000"]
  assert meaning.startswith("loss  of a target token in nats")


def test_held_out_data_have_a_table_of_their_own():
  record = RECORD | {"held_out": {"a.jsonl": {"lm": {"score": 1.0}, "second": {"score": 3.0}}}}
  text = "\n".join(record_text(record, row_titles({"second": "lora"})))
  below, _, meaning = text.partition("held out: a.jsonl\n")[2].partition("\n\n")
  assert [line.split()[0] for line in meaning.splitlines()] == ["loss", "score"]
  assert [line.split()[0] for line in below.splitlines()] == ["score", "lm", "second:"]


def test_the_difference_to_the_baseline_is_a_line():
  paired = {"lm": {"difference": 1.25, "difference_low": -0.5, "difference_high": 3.0}}
  assert record_text(RECORD | {"paired": paired}, {})[-1] == (
    "exact match against lm: +1.2 points (95%: -0.5 to +3.0)"
  )


def gain(points, loss, by_kind=None):
  figures = lambda mean, error: {
    "difference": mean,
    "difference_low": mean - error,
    "difference_high": mean + error,
  }
  found = {"exact_match": figures(points, 2.0), "loss": figures(loss, 0.05)}
  return found if by_kind is None else found | {"by_kind": by_kind}


def test_a_gain_is_said_in_words_with_what_it_cost():
  stated = {"what": "the second pass", "row": "second", "against": "first"}
  stated |= gain(3.0, -0.25, {"near": gain(1.0, 0.01), "far": gain(-5.0, 0.1)})
  record = RECORD | {
    "gains": [stated],
    "metrics": {"loss": 1.0, "gflop": 30.22},
    "rows": {"first": {"loss": 1.5, "gflop": 18.9}},
    "stages": {
      "first": {"seconds": 61.2, "trainable_parameters": 9216},
      "second": {"seconds": 100.0, "trainable_parameters": 340992},
    },
  }
  lines = record_text(record, {})[-7:]
  assert lines[0] == "what the second pass gained (second over first), with 95% intervals:"
  assert lines[1].split() == ["exact", "match,", "points", "loss,", "nats", "a", "target"]
  assert [line.split("  ")[1] for line in lines[2:5]] == ["in all", "near", "far"]
  for line, exact_match, loss in (
    (lines[2], "+3.0 (+1.0 to +5.0)  better", "-0.250 (-0.300 to -0.200)  better"),
    (lines[3], "+1.0 (-1.0 to +3.0)  not clear of 0", "+0.010 (-0.040 to +0.060)  not clear of 0"),
    (lines[4], "-5.0 (-7.0 to -3.0)  worse", "+0.100 (+0.050 to +0.150)  worse"),
  ):
    assert exact_match in line and line.endswith(loss)
  assert " ".join(" ".join(lines[5:]).split()) == (
    "it costs 30.220 instead of 18.900 GFLOP a question, 340,992 instead of 9,216 trained numbers,"
    " 100 instead of 61 s of training"
  )
  assert max(map(len, lines)) <= 100


def test_a_cost_that_does_not_change_is_not_said():
  stated = {"what": "the place", "row": "second", "against": "first"} | gain(3.0, -0.25)
  record = RECORD | {
    "gains": [stated],
    "metrics": {"gflop": 6.7221},
    "rows": {"first": {"gflop": 6.7219}},
    "stages": {"first": {"seconds": 61.0}, "second": {"seconds": 100.0}},
  }
  assert record_text(record, {})[-1] == "  it costs 100 instead of 61 s of training"
  record["stages"]["second"]["seconds"] = 61.3
  assert not any("it costs" in line for line in record_text(record, {}))


def test_a_gain_without_losses_or_costs_says_the_rest():
  stated = {"what": "all", "row": "second", "against": "lm", **gain(3.0, 0.0)}
  del stated["loss"]
  assert record_text(RECORD | {"gains": [stated]}, {})[-3:] == [
    "what all gained (second over lm), with 95% intervals:",
    "                            exact match, points",
    "  in all    +3.0 (+1.0 to +5.0)  better",
  ]


def test_a_row_has_what_its_training_took():
  stages = {"second": {"seconds": 2.5, "trainable_parameters": 1024, "steps": 3}}
  rows = rows_with_training(RECORD | {"stages": stages})
  assert rows["second"] == {"loss": 1.0, "seconds": 2.5, "parameters": 1024}
  assert rows["first"] == {"loss": 1.5}
  head, lm, _, second = metrics_table(rows).splitlines()
  assert head.split() == ["loss", "parameters", "seconds"]
  assert second.split() == ["second", "1.000", "1,024", "2.500"] and lm.split()[2:] == ["-", "-"]


def with_losses(*rows):
  """Scores of questions, each (prediction, loss, targets): "a" is right."""
  return Scores(
    {"exact_match_low": 0.0},
    predictions=[
      {"id": str(n), "prediction": text, "answers": ["a"], "kind": "xy"[n % 2]}
      | ({} if loss is None else {"loss": loss, "targets": targets})
      for n, (text, loss, targets) in enumerate(rows)
    ],
  )


GAINS = [Gain("more", "second", "first"), Gain("all", "second", "elsewhere")]


def test_gains_are_paired_by_question_and_those_of_rows_that_are_not_there_are_left_out():
  first = with_losses(("b", 2.0, 1), ("b", 1.0, 3), ("a", 3.0, 1), ("a", 1.0, 1))
  second = with_losses(("a", 1.0, 1), ("b", 1.0, 3), ("a", 3.0, 1), ("b", 2.0, 1))
  answered = {"first": first.predictions, "second": second.predictions}
  (found,) = gain_records(GAINS, answered)
  assert (found["what"], found["row"], found["against"]) == GAINS[0]
  assert found["exact_match"]["difference"] == found["loss"]["difference"] == 0
  assert found["by_kind"]["x"]["exact_match"]["difference"] == 50.0
  assert found["by_kind"]["x"]["loss"]["difference"] == -0.5
  assert found["by_kind"]["y"]["loss"]["difference"] == pytest.approx(0.25)
  assert gain_records(GAINS, answered | {"first": first.predictions[:2]}) == []


def test_losses_of_other_rows_stand_beside_the_last_where_the_targets_are_as_many():
  first = with_losses(("b", 2.0, 1), ("b", 1.0, 3), ("b", None, 0))
  second = with_losses(("a", 1.0, 1), ("b", 1.0, 2), ("a", 1.0, 1))
  found = side_by_side({"first": first, "second": second})
  assert [row.get("losses") for row in found] == [{"first": 2.0}, None, None]
  assert all(row["predictions"] == {"first": "b"} for row in found)


def answered(*kinds, right=()):
  """Scores of answers to questions of these kinds (None: without one); right: which are so."""
  rows = [
    {"id": str(n), "prediction": "a" if n in right else "b", "answers": ["a"]}
    | ({} if kind is None else {"kind": kind})
    for n, kind in enumerate(kinds)
  ]
  return Scores({"exact_match_low": 0.0}, predictions=rows)


def by_kind(**scores):
  return records._by_kind(records._answered(scores), list(scores)[-1])


def test_questions_are_counted_with_their_kind():
  kinds = ("easy", "hard", "easy", "hard", None)
  found = by_kind(lm=answered(*kinds, right=[0, 4]), own=answered(*kinds, right=[0, 1, 2]))
  assert list(found) == ["easy", "hard"]
  easy, hard = (found[kind]["rows"] for kind in found)
  assert (easy["lm"]["exact_match"], easy["own"]["exact_match"]) == (50.0, 100.0)
  assert (hard["lm"]["exact_match"], hard["own"]["exact_match"]) == (0.0, 50.0)
  assert easy["lm"]["examples"] == hard["own"]["examples"] == 2
  assert found["hard"]["paired"]["lm"] == {
    "difference": 50.0,
    "difference_low": 0.0,
    "difference_high": 100.0,
  }


@pytest.mark.parametrize(
  "kinds",
  [(None, None), ("one", "one"), ("one", None), (["a"], ["b"]), (1, 2), tuple(map(str, range(21)))],
  ids=str,
)
def test_no_kinds_one_or_too_many_have_no_figures(kinds):
  assert by_kind(lm=answered("one", "two"), own=answered(*kinds)) == {}
  assert by_kind(own=answered(*kinds, "one", "two")).keys() <= {"one", "two"}


def test_a_row_that_answered_other_questions_has_no_difference():
  found = by_kind(lm=answered("a", "b"), short=answered("a"), own=answered("a", "b", "b"))
  assert found["a"]["paired"].keys() == {"lm", "short"}
  assert found["b"]["paired"] == {} and found["b"]["rows"].keys() == {"lm", "own"}


def of_kind(exact_match, difference):
  bounds = {"exact_match_low": exact_match - 5.0, "exact_match_high": exact_match + 4.0}
  paired = {"difference": difference, "difference_low": -1.0, "difference_high": 9.0}
  rows = {"lm": {"exact_match": 20.0, **bounds}, "second": {"exact_match": exact_match, **bounds}}
  return {"rows": rows, "paired": {"lm": paired}}


@pytest.mark.parametrize("count", [2, 4, 9])
def test_the_exact_match_of_each_kind_of_question_is_a_column(count):
  kinds = {f"{hops}_hops": of_kind(50.0 + hops, 30.0 + hops) for hops in range(count)}
  text = "\n".join(record_text(RECORD | {"by_kind": kinds}, row_titles({"second": "lora"})))
  table = text.partition("exact match by kind of question (95%)\n")[2].partition("\n\nloss")[0]
  words = table.split()
  assert max(map(len, text.splitlines())) <= 100 and "first" not in words
  for hops, kind in enumerate(kinds):
    assert words.count(kind) == 1
    assert f"{50 + hops}.0 ({45 + hops}.0-{54 + hops}.0)" in table
    said = f"exact match against lm, {kind}: +{30 + hops}.0 points (95%: -1.0 to +9.0)"
    assert said in text.splitlines()


def test_a_row_without_a_kind_has_a_gap():
  kinds = {"easy": of_kind(60.0, 1.0), "hard": of_kind(50.0, 1.0)}
  del kinds["hard"]["rows"]["lm"]
  text = "\n".join(record_text(RECORD | {"by_kind": kinds}, {}))
  assert re.search(r"^lm +20.0 \(55.0-64.0\) +-$", text, re.M)


def test_rows_that_were_skipped_cut_or_left_out_are_said():
  stages = {
    "first": {"method": "lora", "examples": {"skipped": 12, "truncated": 3, "left_out": 1}},
    "second": {"method": "lora", "examples": {"skipped": 0, "truncated": 0}},
  }
  record = RECORD | {"stages": stages, "metrics": {"loss": 1.0, "skipped": 2.0}}
  assert record_text(record, {})[-2:] == [
    "rows of training data, stage first: 12 longer than data.lengths, skipped; 3 truncated to"
    " data.encoder_length for the text encoder; 1 without a target, left out",
    "rows of test data: 2 too long, skipped",
  ]
  assert record_text(RECORD | {"stages": {"second": stages["second"]}}, {}) == record_text(
    RECORD, {}
  )


@pytest.mark.parametrize("name", ["lm", "a_stage_of_a_long_name: input_dependent_prompt_tuning"])
@pytest.mark.parametrize("count", [1, 5, 8, len(COLUMNS)])
def test_a_table_fits_100_columns_and_loses_nothing(name, count):
  figures = {column: 12345.678 + index for index, column in enumerate(COLUMNS[:count])}
  figures |= {"exact_match_low": 10.0, "exact_match_high": 100.0} if count > 1 else {}
  if "parameters" in figures:
    figures["parameters"] = 12345
  text = metrics_table({name: figures, "zero_shot": figures})
  assert max(map(len, text.splitlines())) <= 100
  words = text.split()
  for column in COLUMNS[:count]:
    whole = column == "parameters"
    shown = "12,345" if whole else f"{figures[column]:.3f}"
    assert words.count(column) == 1 and words.count(shown) == 2
  assert len({text.count(f"\n{name} "), text.count("\nzero_shot ")}) == 1


def test_each_column_is_explained_once_and_only_where_it_is_shown():
  rows = {"lm": dict.fromkeys(COLUMNS, 1.0) | {"exact_match_low": 0.5, "exact_match_high": 1.5}}
  lines = explained(rows, rows)
  assert [line.split()[0] for line in lines] == [*COLUMNS[:2], "95%", *COLUMNS[2:]]
  assert max(map(len, lines)) <= 100
  assert [line.split()[0] for line in explained({"lm": {"f1": 1.0, "examples": 3}})] == ["f1"]


def test_accuracy_is_explained_as_what_it_is():
  beside_exact_match = explained({"lm": {"exact_match": 1.0, "accuracy": 1.0}})[-1]
  of_choices = explained({"lm": {"score": 1.0, "accuracy": 1.0}})[-1]
  assert "true ones before it" in beside_exact_match and "choice" in of_choices


@pytest.mark.parametrize(
  "inputs, asked",
  [
    (["What is the capital of Peru?"], "'What is the capital of Peru?'"),
    (["long " * 30, "two\nlines", "", "Who's there?"], "'Who'\"'\"'s there?'"),
    (["long " * 30], None),
    ([], None),
  ],
)
def test_the_closing_tip_asks_a_question_of_the_runs_own_data(tmp_path, inputs, asked):
  rows = [json.dumps({"id": "0", "input": one}) + "\n" for one in inputs]
  (tmp_path / "predictions.jsonl").write_text("".join(rows))
  tip = "\n".join(closing_tip(tmp_path))
  assert tip.startswith(f"The adapter is in {tmp_path}/adapter.")
  command = f" Ask it:\n  python -m frozen_jax.tools.ask {tmp_path} {asked}"
  assert tip.endswith(command if asked else "/adapter.")


def test_the_closing_tip_of_a_run_that_reads_more_than_the_question(tmp_path):
  row = {"id": "0", "input": "Question: Who?\nProposed answers: I\nAnswer:"}
  (tmp_path / "predictions.jsonl").write_text(json.dumps(row | {"original_question": "Who?"}))
  assert closing_tip(tmp_path)[0].endswith(f" {tmp_path} 'Who?'")


def test_the_closing_tip_of_a_run_on_plain_text_asks_nothing(tmp_path):
  assert closing_tip(tmp_path) == [f"The adapter is in {tmp_path}/adapter."]


@pytest.mark.parametrize(
  "arguments, command",
  [
    (
      ["/usr/bin/python3", "-m", "frozen_jax.main", "--config=lora", "--workdir=my runs/a"],
      "python3 -m frozen_jax.main --config=lora '--workdir=my runs/a'",
    ),
    (
      ["/venv/bin/python", "/venv/bin/frozen-jax", "--config.data.template={question}"],
      "frozen-jax '--config.data.template={question}'",
    ),
    (["python", "mine.py", "$HOME"], "python mine.py '$HOME'"),
    (["python"], "python"),
  ],
)
def test_the_command_of_a_record_can_be_run_in_a_shell(arguments, command):
  assert command_line(arguments) == command
  assert len(shlex.split(command)) == len(arguments) - ("frozen-jax" in command)


def test_units_are_those_of_the_figures_that_there_are():
  record = {
    "metrics": {"loss": 1.0},
    "baseline": {"name": "zero_shot", "exact_match": 1.0},
    "rows": {},
    "table": {"rows": ["zero_shot", "last"], "metrics": "last", "baseline": "zero_shot"},
    "held_out": {"nq": {"last": {"f1": 1.0}}},
    "seconds": 3.0,
  }
  assert list(units_of(record)) == ["loss", "exact_match", "f1", "seconds"]


def test_predictions_of_ids_that_come_again_are_paired_in_their_order():
  def scores(*texts):
    rows = [{"id": "same", "prediction": text, "answers": []} for text in texts[:2]]
    own = {"id": "own", "prediction": texts[2], "answers": []}
    return Scores({}, predictions=[*rows, own])

  found = side_by_side({"first": scores("a", "b", "c"), "last": scores("d", "e", "f")})
  assert [row["prediction"] for row in found] == ["d", "e", "f"]
  assert [row["predictions"] for row in found] == [{"first": "a"}, {"first": "b"}, {"first": "c"}]
