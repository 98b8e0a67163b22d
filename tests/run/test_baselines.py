"""The baselines as whole programs: each trains, leaves the frozen tree alone, and can be asked."""

import json

import numpy as np
import pytest

import frozen_jax
from frozen_jax.core import paths
from frozen_jax.models.adapter_folder import read_adapter

TRAINED = {
  "prefix_tuning": {"prefix/k", "prefix/v"},
  "lora": {f"lora/attn/{n}/{half}" for n in "qkvo" for half in "ab"}
  | {f"lora/mlp/{n}/{half}" for n in ("gate", "up", "down") for half in "ab"},
  "adapters": {
    f"adapters/{block}/{way}/{part}"
    for block in ("attn", "mlp")
    for way in ("down", "up")
    for part in ("kernel", "bias")
  },
}


@pytest.mark.parametrize("name", [*TRAINED, "fine_tuning"])
def test_it_trains_and_answers(name, program, lm, tmp_path):
  program.run(f"{name}.py:smoke", f"--workdir={tmp_path}")
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["frozen_unchanged"] is True and results["method"] == name
  tree, _ = read_adapter(tmp_path / "adapter")
  leaves = paths.flatten(tree["trained"])
  if name == "fine_tuning":
    own = {path.removeprefix("lm/"): leaf for path, leaf in leaves.items()}
    before = paths.flatten(lm.params)
    assert own.keys() == before.keys()
    assert any(np.any(own[path] != np.asarray(before[path])) for path in own)
  else:
    assert leaves.keys() == TRAINED[name]
  assert results["trainable_parameters"] == sum(leaf.size for leaf in leaves.values())

  predictions = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()][:3]
  adapter = frozen_jax.load_adapter(tmp_path, lm)
  answers = adapter.generate([row["input"] for row in predictions], max_new_tokens=16)
  assert [answer.strip() for answer in answers] == [row["prediction"] for row in predictions]


def test_what_trains_nothing_is_evaluated_beside_the_lm(program, tmp_path):
  last = [f"--config.{key}=final" for key in ("recirculation.read", "looped.stop")]
  program.run("recirculation.py:smoke", f"--workdir={tmp_path}", *last)
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["trainable_parameters"] == 0 and results["frozen_unchanged"] is True
  rows = {"zero_shot": results["baseline"], **results["rows"], "looped": results["metrics"]}
  for name in ("recirculation", "looped"):
    assert rows[name]["loss"] != rows["zero_shot"]["loss"]
    text = results["forgetting"][name]
    assert text["identical"] and text["with_method"] != text["before"]
