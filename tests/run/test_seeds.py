"""One command for several seeds: a run of each in a folder of its own, and one table of all."""

import importlib
import json
import shutil
import statistics

import pytest

import frozen_jax
from frozen_jax.core.errors import UserError
from frozen_jax.tools import ask, compare
from tests.run.settings_cases import prompt_tuning_config
from tests.run.task_files import lines_file

QUESTIONS = [
  {"question": f"What is the capital of {country}?", "answers": [city], "kind": kind}
  for country, city, kind in (
    ("Peru", "Lima", "near"),
    ("Chile", "Santiago", "near"),
    ("Kenya", "Nairobi", "far"),
  )
]
OF_THE_MOMENT = {"created", "command", "seconds", "stages", "metrics"}


@pytest.fixture(scope="module")
def config(tiny, tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  files = [lines_file(folder / f"{name}.jsonl", *QUESTIONS) for name in ("train", "validation")]
  stated = {"gains": ["tuning: prompt over zero_shot", "prompt over zero_shot_chat"]}
  return prompt_tuning_config(tiny, *files) | {"evaluate": {"max_new_tokens": 2}} | stated


@pytest.fixture(scope="module")
def seeds(config, tmp_path_factory):
  """(workdir, what the run returned) of the seeds 0 and 3."""
  workdir = tmp_path_factory.mktemp("seeds") / "run"
  return workdir, frozen_jax.run.train(config | {"seeds": [0, 3]}, workdir)


@pytest.fixture
def trained(monkeypatch):
  """The seeds that are trained from here on."""
  verb = importlib.import_module("frozen_jax.run.train")  # `frozen_jax.run.train` is the function
  whole, found = verb._train, []

  def note(run, mesh, folder):
    found.append(run.seed)
    return whole(run, mesh, folder)

  monkeypatch.setattr(verb, "_train", note)
  return found


def read(path):
  return json.loads(path.read_text())


def test_each_is_the_run_of_that_seed_alone(config, seeds, tmp_path):
  workdir, _ = seeds
  alone = frozen_jax.run.train(config | {"seed": 3}, tmp_path / "alone")
  ours = read(workdir / "seed_3" / "results.json")
  same = alone.keys() - OF_THE_MOMENT
  assert {key: ours[key] for key in same} == {key: alone[key] for key in same}
  assert ours["metrics"]["loss"] == alone["metrics"]["loss"]
  adapter = "adapter/adapter.safetensors"
  assert (workdir / "seed_3" / adapter).read_bytes() == (tmp_path / "alone" / adapter).read_bytes()
  assert read(workdir / "seed_3" / "config.json") == read(tmp_path / "alone" / "config.json")


def test_their_tables_are_joined(seeds):
  workdir, returned = seeds
  assert {path.name for path in workdir.iterdir()} == {"seed_0", "seed_3", "seeds.md", "seeds.json"}
  assert read(workdir / "seeds.json") == returned
  (group,) = returned["groups"]
  assert [one["seed"] for one in group["runs"]] == [0, 3]
  assert group["title"] == "run/seed_0, run/seed_3"
  losses = [read(workdir / f"seed_{n}" / "results.json")["metrics"]["loss"] for n in (0, 3)]
  found = group["tables"][0]["rows"]["prompt"]["loss"]
  assert (found["n"], found["mean"]) == (2, pytest.approx(statistics.fmean(losses)))
  assert found["standard_error"] == pytest.approx(statistics.stdev(losses) / 2**0.5)
  text = (workdir / "seeds.md").read_text()
  assert "| prompt | 2 | " in text and "n = 2 runs (seeds 0, 3)" in text


def test_figures_by_kind_of_question_are_in_every_record_and_in_the_joined_table(seeds):
  workdir, returned = seeds
  for folder in (workdir / "seed_0", workdir / "seed_3"):
    record = read(folder / "results.json")
    assert list(record["by_kind"]) == ["far", "near"]
    for kind, count in (("far", 1), ("near", 2)):
      rows = record["by_kind"][kind]["rows"]
      assert list(rows) == ["zero_shot", "prompt"] and rows["prompt"]["examples"] == count
      assert record["by_kind"][kind]["paired"].keys() == {"zero_shot"}
    written = [json.loads(line) for line in (folder / "predictions.jsonl").open()]
    assert [row["kind"] for row in written] == ["near", "near", "far"]
  table = returned["groups"][0]["tables"][-1]
  assert table["by_kind"] and list(table["rows"]["prompt"]) == ["far", "near"]
  kinds = [one["kind"] for one in returned["groups"][0]["differences"]]
  assert kinds == ["", "far", "near"]


def test_what_a_stage_gained_is_in_every_record_and_over_all_seeds(seeds):
  workdir, returned = seeds
  gains = []
  for folder in (workdir / "seed_0", workdir / "seed_3"):
    record = read(folder / "results.json")
    (gain,) = record["gains"]  # the tiny LM has no chat form
    assert (gain["what"], gain["row"], gain["against"]) == ("tuning", "prompt", "zero_shot")
    assert list(gain["by_kind"]) == ["far", "near"]
    losses = record["metrics"]["loss"], record["baseline"]["loss"]
    assert gain["loss"]["difference"] == pytest.approx(losses[0] - losses[1], abs=1e-5)
    assert gain["loss"]["difference_low"] <= gain["loss"]["difference"]
    gains.append(gain["loss"]["difference"])
    assert record["metrics"]["gflop"] > record["baseline"]["gflop"] > 0
  joined = returned["groups"][0]["gains"]
  assert [one["kind"] for one in joined] == ["", "far", "near"]
  assert joined[0]["loss"]["mean"] == pytest.approx(statistics.fmean(gains))
  assert joined[0]["loss"]["low"] < joined[0]["loss"]["mean"] < joined[0]["loss"]["high"]
  assert "| tuning: prompt over zero_shot | 2 | " in (workdir / "seeds.md").read_text()


def test_complete_seeds_are_not_run_again_and_more_of_them_join(
  config, seeds, trained, capsys, tmp_path
):
  workdir = shutil.copytree(seeds[0], tmp_path / "run")
  again = frozen_jax.run.train(config | {"seeds": ["0", "3"]}, workdir)
  assert trained == [] and again["groups"] == read(workdir / "seeds.json")["groups"]
  assert "n = 2 runs (seeds 0, 3)" in " ".join(capsys.readouterr().out.split())
  more = frozen_jax.run.train(config | {"seeds": [0, -1, 3]}, workdir)
  assert trained == [-1] and (workdir / "seed_-1" / "adapter").is_dir()
  assert [one["seed"] for one in more["groups"][0]["runs"]] == [0, -1, 3]


def test_what_ends_early_goes_on_with_the_seed_that_is_missing(
  config, trained, train_stages, tmp_path
):
  workdir = tmp_path / "run"
  frozen_jax.run.train(config | {"seed": 1}, workdir / "seed_1")
  train_stages(config | {"seeds": [1, 2]}, workdir)  # ends before seed 2 is scored
  assert trained == [1, 2] and not (workdir / "seeds.json").exists()
  record = frozen_jax.run.train(config | {"seeds": [1, 2]}, workdir)
  assert (
    trained == [1, 2, 2] and record["groups"][0]["tables"][0]["rows"]["prompt"]["loss"]["n"] == 2
  )


@pytest.fixture(scope="module")
def evaluated(config, seeds):
  """(workdir, what three evaluations returned): of all seeds twice, and of two under a name."""
  workdir, _ = seeds
  test = {"evaluate": {"max_examples": 2, "max_new_tokens": 1}}
  named = {"evaluation": "mine", "seeds": [3, 0]}
  changes = ({}, {}, named)
  return workdir, [frozen_jax.run.evaluate(config | test | one, workdir) for one in changes]


def test_an_evaluation_is_one_of_every_seed(evaluated):
  workdir, found = evaluated
  folders = workdir / "evaluations"
  assert {path.name for path in folders.iterdir()} == {"validation", "validation-2", "mine"}
  for name, record in zip(("validation", "validation-2", "mine"), found, strict=True):
    assert read(folders / name / "seeds.json") == record and (folders / name / "seeds.md").is_file()
    (group,) = record["groups"]
    wanted = [3, 0] if name == "mine" else [0, 3]
    assert [one["seed"] for one in group["runs"]] == wanted
    for one in group["runs"]:
      place = workdir / f"seed_{one['seed']}" / "evaluations" / name
      assert read(place / "results.json")["metrics"]["examples"] == 2


def test_a_seed_that_is_not_complete_is_said_before_any_is_scored(config, evaluated):
  workdir, _ = evaluated
  before = sorted(workdir.rglob("results.json"))
  with pytest.raises(UserError, match="no such folder: .*seed_9"):
    frozen_jax.run.evaluate(config | {"seeds": [0, 9]}, workdir)
  assert sorted(workdir.rglob("results.json")) == before


@pytest.mark.parametrize("verb", ["predict", "export"])
def test_what_takes_one_run_says_which_to_name(config, seeds, verb):
  workdir, _ = seeds
  said = rf"{workdir} holds the runs of the seeds 0, 3; name one of them, such as {workdir}/seed_0$"
  with pytest.raises(UserError, match=said):
    getattr(frozen_jax.run, verb)(config, workdir)
  with pytest.raises(UserError, match=said):
    getattr(frozen_jax.run, verb)(config | {"seeds": [0, 3]}, workdir)


def test_a_seed_is_exported_as_any_run(config, seeds):
  workdir, _ = seeds
  done = frozen_jax.run.export(config, workdir / "seed_3")
  assert done["folder"] == str(workdir / "seed_3" / "export")


def test_asking_says_which_to_name(seeds, capsys):
  assert ask.main([str(seeds[0]), "What?"]) == 2
  assert "holds the runs of the seeds 0, 3; name one" in capsys.readouterr().err


def test_init_from_says_which_to_name(config, seeds, tmp_path):
  with pytest.raises(UserError, match="holds the runs of the seeds 0, 3; name one"):
    frozen_jax.run.train(config | {"init_from": str(seeds[0])}, tmp_path / "run")


def test_one_run_and_several_do_not_share_a_workdir(config, seeds):
  workdir, _ = seeds
  with pytest.raises(UserError, match=r"such as .*/seed_0, or give --config.seeds=0,3$"):
    frozen_jax.run.train(config, workdir)
  with pytest.raises(UserError, match="seed_0 holds a single run; choose another --workdir"):
    frozen_jax.run.train(config | {"seeds": [1, 2]}, workdir / "seed_0")


def test_a_workdir_of_seeds_is_compared_as_all_of_them(seeds, capsys):
  workdir, returned = seeds
  assert compare.main([str(workdir), "--format=json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["groups"][0]["tables"] == returned["groups"][0]["tables"]
  assert compare.main([str(workdir), "--format=csv"]) == 0
  lines = capsys.readouterr().out
  assert '"exact_match, near"' in lines and '"exact_match_difference, far"' in lines
