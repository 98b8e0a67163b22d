"""Which folders of a workdir are those of seeds, and what is said of them."""

import pytest

from frozen_jax.core.files import write_json
from frozen_jax.core.seed_folders import seed_folder, seeds_in, several_runs, workdir_name
from frozen_jax.core.user_path import user_path


def test_the_seeds_of_a_workdir_rise_and_other_names_are_none(tmp_path):
  for name in ("seed_10", "seed_2", "seed_-3", "seed_0", "seed_", "seed_07", "seed_x", "my_seed_1"):
    (tmp_path / name).mkdir()
  assert seeds_in(tmp_path) == [-3, 0, 2, 10]
  assert all(seed_folder(tmp_path, seed).is_dir() for seed in seeds_in(tmp_path))


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_what_is_no_folder_has_no_seeds(tmp_path, name):
  (tmp_path / "file").write_text("")
  assert seeds_in(tmp_path / name) == []


def test_on_a_store_likewise(store, tmp_path, monkeypatch):
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path))
  workdir = user_path(f"{store.url}/several")
  assert seeds_in(workdir) == []
  for seed in (4, -1):
    write_json(seed_folder(workdir, seed) / "config.json", {})
  assert seeds_in(workdir) == [-1, 4]


@pytest.mark.parametrize("path, name", [("a/run", "run"), ("a/run/seed_3", "run/seed_3")])
def test_the_name_of_a_seed_has_that_of_its_workdir(tmp_path, path, name):
  assert workdir_name(tmp_path / path) == name


def test_what_is_said_names_one_of_them(tmp_path):
  said = several_runs(tmp_path, [2, 5])
  assert "the seeds 2, 5" in said and said.endswith(str(tmp_path / "seed_2"))
