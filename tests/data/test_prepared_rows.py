"""The tfds builder of task rows: files of a folder become array_record, the same rows in order."""

import gzip
import json

import pytest
import tensorflow_datasets as tfds

from frozen_jax.core.errors import UserError
from frozen_jax.data.builders.prepare import quiet
from frozen_jax.data.builders.task_rows import TaskRows
from frozen_jax.data.sources import open_source

ROWS = [
  {"dataset": "b", "template": "t", "input": "é?", "target": "x", "choices": ["x", "y"]},
  {"dataset": "a", "template": "u", "input": "2?", "target": ""},
  {"dataset": "a", "input": "3?", "choices": ["p", "q"], "labels": [1, 0]},
  {"dataset": "a", "definition": "Say.", "input": "4?", "targets": ["v", "w"], "id": "own"},
]


@pytest.fixture
def folder(tmp_path):
  made = tmp_path / "mine"
  made.mkdir()
  text = "".join(json.dumps(row) + "\n" for row in ROWS)
  (made / "train.jsonl.gz").write_bytes(gzip.compress(text.encode()))
  (made / "zero_shot.jsonl").write_text(json.dumps(ROWS[0] | {"dataset": "z"}))
  (made / "notes.txt").write_text("not data")
  return made


def keep(example):
  return {key: value for key, value in example.items() if key not in ("labels", "targets")}


def test_a_folder_is_prepared_and_opened(folder, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  with quiet():
    builder = tfds.builder(
      "task_rows/mine", folder=folder, data_dir=tmp_path / "tfds", file_format="array_record"
    )
    builder.download_and_prepare()
  source = open_source("tfds:task_rows/mine/train")
  expected = [keep(example) for example in open_source(str(folder / "train.jsonl.gz"))]
  assert [example | {"template": ""} for example in source] == [
    example | {"template": ""} for example in expected
  ]
  assert [example["template"] for example in source] == ["t", "", ""]
  assert [example["id"] for example in source] == ["0", "1", "own"]
  assert source.datasets == ("b", "a") and source.dataset_index.tolist() == [0, 1, 1]
  assert open_source("tfds:task_rows/mine/zero_shot").datasets == ("z",)


def test_files_in_the_place_of_tfds_own(folder, tmp_path, monkeypatch):
  data = tmp_path / "tfds"
  monkeypatch.setenv("TFDS_DATA_DIR", str(data))
  place = data / "downloads" / "manual"
  place.mkdir(parents=True)
  folder.rename(place / "mine")
  assert len(open_source("tfds:task_rows/mine/train")) == 3
  with pytest.raises(UserError, match="cannot give 'task_rows/mine', split 'dev'"):
    open_source("tfds:task_rows/mine/dev")


def prepared(folder, tmp_path):
  with quiet():
    TaskRows(folder=folder, data_dir=tmp_path, file_format="array_record").download_and_prepare()


def test_folders_without_rows_of_tasks(tmp_path):
  (tmp_path / "none").mkdir()
  with pytest.raises(UserError, match="none holds no .jsonl or .jsonl.gz files"):
    prepared(tmp_path / "none", tmp_path)
  (tmp_path / "none" / "train.jsonl").write_text('{"text": "red"}')
  with pytest.raises(UserError, match="holds no rows of tasks"):
    prepared(tmp_path / "none", tmp_path)
