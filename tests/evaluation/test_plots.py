"""report.png and gate.png: what their axes show, by the figures, and that files are written."""

import numpy as np
import PIL.Image
import pytest

from frozen_jax.evaluation.gate import deferral_curves
from frozen_jax.evaluation.plots import draw_gate, draw_report, gate_figure, report_figure

ROWS = {
  "zero_shot": {
    "exact_match": 20.0,
    "exact_match_low": 15.0,
    "exact_match_high": 26.0,
    "loss": 2.0,
  },
  "prompt: prompt_tuning": {"exact_match": 50.0, "exact_match_low": 44.0, "exact_match_high": 56.0},
}


def lines(stages):
  return [
    {"stage": stage, "step": step, "split": split, "loss": 1.0 / step}
    for stage in stages
    for step in (1, 2, 4)
    for split in (("train", "validation") if step > 1 else ("train",))
  ]


def shown(figure):
  """The axes that are not left empty."""
  return [axis for axis in figure.get_axes() if axis.axison]


def test_bars_with_intervals_and_the_baseline():
  bars, losses = shown(report_figure(lines(["prompt"]), ROWS, baseline="zero_shot"))
  assert [text.get_text() for text in bars.get_yticklabels()] == list(ROWS)
  assert bars.get_ylim()[0] > bars.get_ylim()[1], "the first system is on top"
  assert [bar.get_width() for bar in bars.patches] == [20.0, 50.0]
  assert [text.get_text() for text in bars.texts] == [
    "20.0  (15.0 to 26.0)",
    "50.0  (44.0 to 56.0)",
  ]
  assert "exact match (%), 95% intervals, dashed: zero_shot" in bars.get_title(loc="left")
  assert any(list(line.get_xdata()) == [20.0, 20.0] for line in bars.lines)
  assert bars.get_xlim()[0] == 0 and bars.get_xlim()[1] > 56
  assert losses.get_xlabel() == "step" and losses.get_ylabel() == "loss (nats per target)"
  assert [line.get_label() for line in losses.lines] == ["train", "validation"]
  assert list(losses.lines[1].get_xdata()) == [2, 4]


def test_held_out_sets_are_further_groups_on_the_same_scale():
  held_out = {"tasks": {"zero_shot": {"score": 30.0}}, "nothing": {"zero_shot": {}}}
  test, tasks = shown(report_figure([], ROWS, held_out))
  assert tasks.get_title(loc="left") == "held out: tasks: score (%)"
  assert test.get_xlim() == tasks.get_xlim()


def test_a_figure_that_is_no_number_has_no_bar():
  rows = {"lm": {"loss": float("nan")}, "second": {"loss": 2.0}}
  (bars,) = shown(report_figure([], rows))
  assert [bar.get_width() for bar in bars.patches] == [2.0]
  assert not shown(report_figure([], {"lm": {"loss": float("inf")}}))[0].patches


def test_losses_where_there_is_no_score():
  (bars,) = shown(report_figure([], {"lm": {"loss": 2.25}}))
  assert bars.texts[0].get_text() == "2.250"
  assert "loss (nats per target)" in bars.get_title(loc="left")


def test_loss_curves_wrap_at_three_columns():
  stages = ["a", "b", "c", "d", "e"]
  axes = shown(report_figure(lines(stages), ROWS))[1:]
  assert [axis.get_title() for axis in axes] == [f"stage {name}" for name in stages]
  assert {axis.get_subplotspec().get_geometry()[:2] for axis in axes} == {(2, 3)}


@pytest.mark.parametrize("count, height", [(2, 560), (8, 810)])
def test_report_png_is_as_wide_as_a_screen(tmp_path, count, height):
  rows = {f"a system with a rather long name, number {n}": ROWS["zero_shot"] for n in range(count)}
  draw_report(tmp_path / "report.png", lines(["prompt"]), rows)
  image = PIL.Image.open(tmp_path / "report.png")
  assert image.size[0] == 1200 and abs(image.size[1] - height) < 60


def curves():
  sure = np.array([0.9, 0.5, 0.1, 0.5, 0.7])
  first = np.array([100.0, 100.0, 0.0, 0.0, 100.0])
  return deferral_curves(sure, first, np.array([0.0, 0.0, 100.0, 100.0, 100.0]))


def test_the_gate_with_its_budget_and_the_chosen_point(tmp_path):
  point = {"compute": 1.2, "accuracy": 80.0}
  (axis,) = gate_figure(curves(), point, 1.3, "exact_match").get_axes()
  assert axis.get_title() == "Exact match against mean compute"
  assert axis.get_ylabel() == "exact match (%)" and "passes" in axis.get_xlabel()
  labels = [line.get_label() for line in axis.lines]
  assert labels[:3] == ["gate (area 76.0)", "random (area 60.0)", "oracle (area 92.0)"]
  assert labels[3:] == ["budget (1.30 passes)", "chosen gate"]
  assert list(axis.lines[3].get_xdata()) == [1.3, 1.3]
  assert [text.get_text() for text in axis.texts] == ["chosen: 80.0 at 1.20 passes"]
  draw_gate(tmp_path / "gate.png", curves(), point, 1.3, "f1")
  assert PIL.Image.open(tmp_path / "gate.png").size == (900, 520)


@pytest.mark.parametrize("metrics", [{"exact_match": 0.0}, {"exact_match": 0.0, "loss": 2.0}])
def test_scores_that_are_all_zero_have_an_axis_that_can_be_read(metrics):
  (axis, *_) = shown(report_figure([], {"zero_shot": metrics, "prompt": metrics}))
  assert axis.get_xlim() == (0, 1)


def test_plain_text_is_shown_by_its_loss():
  metrics = {"loss": 2.5, "perplexity": 12.2, "accuracy": 41.0}
  (axis, *_) = shown(report_figure([], {"zero_shot": metrics}))
  assert axis.get_title(loc="left").startswith("test data: loss (nats per target)")
  assert axis.get_xlim()[1] == pytest.approx(3.0)


@pytest.mark.parametrize("right", [0.0, 50.0, 100.0])
def test_a_gate_that_changes_nothing_has_ten_points_of_axis(right):
  rows = np.full(4, right)
  flat = deferral_curves(np.array([0.1, 0.4, 0.6, 0.9]), rows, rows)
  figure = gate_figure(flat, {"compute": 1.5, "accuracy": right}, 1.5, "exact_match")
  (axis,) = figure.axes
  low, high = axis.get_ylim()
  assert (low, high) == (right - 5, right + 5)
