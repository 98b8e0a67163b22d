"""The counted FLOPs are those of the program in full, and no weight exists at any time."""

import json

import jax
import jax.numpy as jnp
import pytest

from frozen_jax.backbones import decoder, encoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.config.config_file import load_config
from frozen_jax.core import paths
from frozen_jax.core.flop_count import flops
from frozen_jax.core.paths import num_parameters
from frozen_jax.models.settings import ModelSettings
from frozen_jax.run.settings import resolve_run
from frozen_jax.tools import cost, model_sizes
from frozen_jax.tools.abstract_stage import AbstractStage
from tests.backbones import encoder_cases
from tests.backbones.decoder_cases import torch_model
from tests.processes import HANGS_AFTER, start

pytestmark = pytest.mark.program

LM = {
  "vocab_size": 96,
  "width": 32,
  "layers": 5,
  "heads": 4,
  "kv_heads": 2,
  "head_dim": 8,
  "mlp_width": 96,
  "context": 256,
}
T5 = {
  "vocab_size": 80,
  "width": 24,
  "layers": 4,
  "heads": 3,
  "head_dim": 8,
  "mlp_width": 40,
  "types": 0,
  "embed_norm": False,
  "norm": "rms",
  "norm_bias": False,
  "norm_first": True,
  "positions": "buckets",
  "attn_bias": False,
  "mlp_bias": False,
  "scaled": False,
}
# The sizes of the paper's LM (J1-Large, 7.5B; Lieber et al. 2021) and of T5-base's encoder.
PAPER_LM = {
  "vocab_size": 256_000,
  "width": 4096,
  "layers": 32,
  "heads": 32,
  "kv_heads": 32,
  "head_dim": 128,
  "mlp_width": 16_384,
  "gated": False,
  "activation": "gelu",
  "norm": "layer",
  "positions": "learned",
  "tied": True,
  **{f"{part}_bias": True for part in ("qkv", "out", "mlp")},
}
T5_BASE = T5 | {
  "vocab_size": 32_128,
  "width": 768,
  "layers": 12,
  "heads": 12,
  "head_dim": 64,
  "mlp_width": 3072,
  "activation": "relu",
}
TEXT = cost.Text(40, 24)


def settings(method, config="prompt_tuning", lm=LM, encoder=None, **sections):
  """The settings of a run of a config on models of these sizes; with `method` of one stage."""
  values = load_config(f"configs/{config}.py").to_dict()
  values["model"] |= {"sizes": lm, "encoder_sizes": encoder or {}, "name": "nowhere"}
  values["prompt"]["length"] = 8
  for name, section in sections.items():
    values[name] = values.get(name, {}) | section
  if method:
    values["stages"], values["stage_order"] = {"one": {"method": method}}, ["one"]
  return resolve_run(values)


GENERATOR = {"width": 16, "heads": 2, "layers": 1, "constant": True, "p_prime_length": 3}
CASES = {
  "prompt_tuning": settings("prompt_tuning"),
  "prefix_tuning": settings(None, "prefix_tuning"),
  "lora": settings(None, "lora"),
  "adapters": settings(None, "adapters"),
  "fine_tuning": settings(None, "fine_tuning"),
  "id_pt": settings("id_pt", encoder=T5, generator=GENERATOR),
}


def first_stage(run):
  return AbstractStage.of(run, run.stages[0].name), model_sizes.find_models(run.model)


def test_every_iteration_of_a_loop_counts():
  matrix = jax.ShapeDtypeStruct((16, 16), jnp.float32)

  def powers(x, iterations):
    return jax.lax.scan(lambda y, _: (y @ x, None), x, None, length=iterations)[0]

  once = 2 * 16**3
  times = lambda count: pytest.approx(count * once, rel=1e-3)  # a loop counts its iterations
  assert flops(lambda x: powers(x, 1), matrix) == times(1)
  assert flops(lambda x: powers(x, 7), matrix) == times(7)
  assert flops(lambda x: jax.jit(lambda x: powers(x, 7))(x), matrix) == times(7)
  inner = lambda x: jax.lax.scan(lambda y, _: (powers(y, 3), None), x, None, length=5)[0]
  assert flops(inner, matrix) == times(15)
  assert flops(jax.checkpoint(inner), matrix) == times(15)
  gradient = jax.grad(lambda x: powers(x, 7).sum())
  assert flops(gradient, matrix) == pytest.approx(3 * 7 * once, rel=0.1)


def test_a_loop_without_a_known_end_is_refused():
  search = lambda x: jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y * 2, x)
  with pytest.raises(ValueError, match="iterations depend on computed values"):
    flops(search, jax.ShapeDtypeStruct((4,), jnp.float32))


def matrices(config):
  """The numbers that are multiplied with each token's state within the layers."""
  shapes = paths.flatten(decoder.param_shapes(config)["layers"])
  return sum(leaf.size for path, leaf in shapes.items() if path.endswith("kernel"))


def test_the_lm_alone_takes_2n_and_a_prompt_step_4n():
  wide = {**LM, "width": 128, "mlp_width": 512, "head_dim": 32}
  config, text = DecoderConfig(**wide), cost.Text(64, 64)
  stage, models = first_stage(settings("prompt_tuning", lm=wide))
  measured = cost._measured(stage, models, text)

  def expected(length, targets, step):
    """Backward, products with weights cost once more, those of attention twice more."""
    attention = 4 * length * config.heads * config.head_dim * config.layers
    head = 2 * targets * config.width * config.vocab_size
    products = 2 * length * matrices(config) + head
    return products * (2 if step else 1) + length * attention * (3 if step else 1)

  assert measured.alone == pytest.approx(expected(64, 1, False), rel=0.03)
  assert measured.with_method == pytest.approx(expected(72, 1, False), rel=0.03)
  assert measured.step == pytest.approx(expected(72, cost.TARGETS, True), rel=0.04)
  assert measured.rule == 4 * measured.lm * 64
  assert measured.longer == pytest.approx(measured.with_method - measured.alone, rel=0.01)
  assert measured.encoding == 0 and "encoder" not in "\n".join(cost.cost_lines(measured))


def test_what_is_trained_is_what_the_method_makes():
  found = {name: first_stage(run) for name, run in CASES.items()}
  trained = {name: num_parameters(stage.trained(models)) for name, (stage, models) in found.items()}
  whole = num_parameters(decoder.param_shapes(DecoderConfig(**LM)))
  assert trained["prompt_tuning"] == 8 * 32 and trained["fine_tuning"] == whole
  assert trained["prefix_tuning"] == 8 * 2 * 2 * 8 * LM["layers"]
  assert trained["id_pt"] > 8 * 32 + 3 * 24
  traits = {name: stage.traits(models) for name, (stage, models) in found.items()}
  assert {name for name, (_, reads) in traits.items() if reads} == {"id_pt"}
  num_virtual_tokens = {name: count for name, (count, _) in traits.items()}
  assert {name for name, count in num_virtual_tokens.items() if count == 8} == {
    "prompt_tuning",
    "prefix_tuning",
    "id_pt",
  }
  assert set(num_virtual_tokens.values()) == {0, 8}


def test_the_parts_of_id_pt():
  (measured,) = cost.measure(CASES["id_pt"], TEXT)
  trained_parts = measured.with_method - measured.alone - measured.encoding - measured.longer
  assert 0 < trained_parts < measured.encoding
  text = "\n".join(cost.cost_lines(measured))
  assert "(24 of the encoder's)" in text and "the encoder" in text and "8 positions more" in text


def test_a_prompt_for_each_data_set_is_counted(tmp_path):
  rows = [{"dataset": name, "input": "a", "target": "b"} for name in ("one", "two", "one")]
  (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  data = {"train": str(tmp_path / "rows.jsonl")}
  run = settings("prompt_tuning", prompt={"per_task": True, "length": 8}, data=data)
  stage, models = first_stage(run)
  assert num_parameters(stage.trained(models)) == 2 * 8 * 32
  assert cost._read(stage, models, TEXT) == pytest.approx(
    cost._read(first_stage(CASES["prompt_tuning"])[0], models, TEXT), rel=0.01
  )


def test_cached_states_save_the_encoder():
  run = settings("id_pt", encoder=T5, generator=GENERATOR | {"p_prime_length": 0})
  (measured,) = cost.measure(run, TEXT)
  assert measured.step - measured.cached_step == pytest.approx(measured.encoding, rel=0.02)
  assert "with cached states" in "\n".join(cost.cost_lines(measured))
  stage, models = first_stage(CASES["id_pt"])
  assert stage.traits(models)[1] == "encoder_tokens"  # p' changes the states: nothing to keep


def test_an_encoder_that_a_stage_does_not_read_costs_nothing():
  alone, with_encoder = settings("prompt_tuning"), settings("prompt_tuning", encoder=T5)
  assert cost.measure(alone, TEXT) == cost.measure(with_encoder, TEXT)


def test_a_stage_on_parts_of_another():
  small = {"width": 8, "layers": 1, "heads": 2, "dropout": 0.0}
  run = settings(None, "recursive", recursion={"connector": small})
  measured = {one.stage: one for one in cost.measure(run, TEXT)}
  assert measured.keys() == {"prompt", "baseline", "late_prompt", "control", "finetune"}
  assert 2 < measured["finetune"].with_method / measured["finetune"].alone < 3
  assert measured["finetune"].trained > measured["prompt"].trained == 8 * 32


def test_at_the_scale_of_the_paper():
  """docs/paper.md, 2: about 0.3% trained, and about 1% more inference for these networks."""
  generator = GENERATOR | {"width": 896, "heads": 14, "p_prime_length": 10}
  run = settings("id_pt", lm=PAPER_LM, encoder=T5_BASE, generator=generator)
  (measured,) = cost.measure(run, cost.Text(1024, 1024))
  assert measured.lm == pytest.approx(7.5e9, rel=0.01)
  assert measured.encoder == pytest.approx(110e6, rel=0.01)
  config = EncoderConfig(**T5_BASE)
  shapes = paths.flatten(encoder.param_shapes(config)["layers"])
  numbers = sum(leaf.size for path, leaf in shapes.items() if path.endswith("kernel"))
  attention = 4 * 1024 * config.heads * config.head_dim * config.layers
  assert measured.encoding == pytest.approx(1024 * (2 * numbers + attention), rel=0.05)
  assert measured.share == pytest.approx(0.003, abs=0.0005)
  assert (measured.extra * measured.alone - measured.longer) / measured.alone < 0.02
  assert 0.8 < measured.step / measured.rule < 1.0  # N counts a table that is looked up


def test_models_by_name_are_read_from_their_headers(tmp_path):
  torch_model("llama").save_pretrained(tmp_path / "lm")
  encoder_cases.make("bert").save_pretrained(tmp_path / "encoder")
  lm, encoder = str(tmp_path / "lm"), str(tmp_path / "encoder")
  models = model_sizes.find_models(ModelSettings(name=lm, encoder=encoder))
  assert models.lm.layers == 3 and models.encoder.positions == "learned"
  with pytest.raises(cost.UserError, match="is no decoder"):
    model_sizes.find_models(ModelSettings(name=encoder))
  with pytest.raises(cost.UserError, match="is no encoder"):
    model_sizes.find_models(ModelSettings(name=lm, encoder=lm))


@pytest.mark.parametrize(
  "sizes, message",
  [
    (LM | {"depth": 3}, "model.sizes has depth"),
    (LM | {"kv_heads": 3}, "cannot share 3"),
    ({"width": 3}, "missing"),
  ],
)
def test_sizes_that_make_no_model(sizes, message):
  with pytest.raises(cost.UserError, match=message):
    cost.measure(settings("prompt_tuning", lm=sizes), TEXT)


def test_texts_that_do_not_fit():
  with pytest.raises(cost.UserError, match="context of 256"):
    cost.measure(CASES["prompt_tuning"], cost.Text(249, 249))
  learned = T5 | {"positions": "learned", "context": 20}
  run = settings("id_pt", encoder=learned, generator=GENERATOR)
  with pytest.raises(cost.UserError, match="24 positions is too long"):
    cost.measure(run, TEXT)


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "--config"),
    (["--config=configs/nothing.py"], "no such config"),
    (["--config=configs/lora.py", "--length=0"], "no such number"),
    (["--config=configs/lora.py", "--config.train.steps"], "has no value"),
    (["--config=configs/lora.py", "--config.lora.size=3"], "unknown config key"),
  ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys):
  assert cost.main(arguments) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1


def test_arguments_reach_the_config():
  run, text = cost.parse(
    ["--config=configs/lora.py", "--length=100", "--config.prompt.length=5", "--config.seed=2"]
  )
  assert (run.prompt.length, run.seed) == (5, 2)
  assert text == cost.Text(100, 100)
  assert cost.parse(["--config=configs/lora.py", "--length=999"])[1] == cost.Text(999, 256)


def test_the_command(tmp_path):
  torch_model("llama").save_pretrained(tmp_path)
  flags = ["--length=16", f"--config.model.name={tmp_path}", "--config.prompt.length=2"]
  process = start("-m", "frozen_jax.tools.cost", "--config=configs/lora.py", *flags)
  out, err = process.communicate(timeout=HANGS_AFTER)
  assert process.returncode == 0, err
  assert "stage lora: lora" in out and "4N a token" in out


def test_the_rivals_of_a_second_pass_train_about_as_many_numbers():
  """`configs/second_pass.py:all` on a model of SmolLM2-135M's sizes."""
  smollm2 = DecoderConfig(
    vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp_width=1536
  )
  run, models = (
    resolve_run(load_config("configs/second_pass.py:all")),
    model_sizes.Models(smollm2, None),
  )
  trained = {
    stage.name: paths.num_parameters(AbstractStage.of(run, stage.name).trained(models))
    for stage in run.stages
  }
  own = trained["second_pass"]
  assert own == trained["control"] == trained["three_passes"] == 576**2 + 16 * 576
  for name in ("lora", "prefix"):
    assert trained[name] == pytest.approx(own, rel=0.02)
  assert trained["prompt_on"] == trained["late_prompt"] == 16 * 576
  assert trained["recirculation"] == trained["looped"] == 0
  assert {stage.train.patience for stage in run.stages} == {3}
