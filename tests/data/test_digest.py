"""Digests of sources: equal for equal contents wherever they are, different for any change."""

import gzip
import json
import shutil

import pytest
import tensorflow_datasets as tfds

from frozen_jax.data.builders import prepare
from frozen_jax.data.builtin import BUILTIN_DATASETS
from frozen_jax.data.sources import open_source

pytestmark = pytest.mark.program

ROWS = [{"dataset": "d", "query": f"what is {n}", "reply": "red"} for n in range(3)]
FIELDS = ("question=query", "answers=reply")
TEMPLATES = "dataset: d\ntemplates: {a: {jinja: '{{query}} ||| {{reply}}'}}\n"


def text(rows=ROWS):
  return "".join(json.dumps(row) + "\n" for row in rows)


def digest(path, fields=FIELDS, **options):
  return open_source(str(path), fields, **options).digest


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text(text())
  return path


def test_path_and_compression_do_not_matter(path, tmp_path):
  other = tmp_path / "other.jsonl.gz"
  other.write_bytes(gzip.compress(text().encode()))
  assert digest(other) == digest(path) == digest(path)
  assert len(digest(path)) == 64 and int(digest(path), 16)


@pytest.mark.parametrize("row", [0, 2])
def test_one_changed_byte_matters(path, row):
  before = digest(path)
  rows = [dict(one) for one in ROWS]
  rows[row]["reply"] = "rid"
  path.write_text(text(rows))
  assert digest(path) != before


def test_fields_matter_where_they_change_rows(path):
  swapped = ("question=reply", "answers=query")
  assert digest(path) != digest(path, swapped)
  same = (*FIELDS, "dataset=dataset")
  assert (
    digest(path)
    == digest(path, same)
    == digest(path, dict(reversed([f.split("=") for f in FIELDS])))
  )


def test_fields_of_another_source_do_not_matter(path, tmp_path):
  plain = tmp_path / "plain.jsonl"
  plain.write_text(text([{"question": "q", "answers": ["a"]}]))
  unmapped = open_source(str(plain)).digest
  (part,) = open_source(f"{path},{plain}", FIELDS)._parts[1:]
  (alone,) = open_source(str(plain))._parts
  assert part.digest == alone.digest and unmapped != digest(path)


def test_several_sources_combine_in_order(path, tmp_path):
  other = tmp_path / "other.jsonl"
  other.write_text(text(ROWS[:1]))
  both = {digest(f"{path},{other}"), digest(f"{other},{path}"), digest(path), digest(other)}
  assert len(both) == 4


def test_templates_that_apply_matter_by_their_texts(path, tmp_path):
  folder = tmp_path / "templates"
  folder.mkdir()
  (folder / "d.yaml").write_text(TEMPLATES)
  first = digest(path, (), templates=str(folder))
  (folder / "e.yaml").write_text(TEMPLATES.replace("dataset: d", "dataset: e"))
  assert digest(path, (), templates=str(folder)) == first != digest(path)
  (folder / "d.yaml").write_text(TEMPLATES.replace("{{query}} |", "{{query}}? |"))
  assert digest(path, (), templates=str(folder)) != first


def test_templates_for_any_data_set_do_not_depend_on_a_files_name(tmp_path):
  (tmp_path / "t.yaml").write_text(TEMPLATES.replace("dataset: d\n", ""))
  rows = [{key: value for key, value in row.items() if key != "dataset"} for row in ROWS]
  digests = set()
  for name in ("a.jsonl", "b.jsonl"):
    (tmp_path / name).write_text(text(rows))
    digests.add(digest(tmp_path / name, (), templates=str(tmp_path / "t.yaml")))
  assert len(digests) == 1


def test_built_in_data_sets_go_by_their_rows_not_by_what_they_are_made_from(cache, monkeypatch):
  first, other = (open_source(f"world_facts/{split}").digest for split in ("train", "test"))
  assert first != other and open_source("world_facts/train").digest == first
  monkeypatch.setattr(prepare, "build_key", lambda: "0" * 12)  # a comment, another Python
  again = open_source("world_facts/train")
  assert prepare.prepare("world_facts").parts[-3] == f"world_facts-{'0' * 12}"
  assert again.digest == first


class DigestNumbers(tfds.core.GeneratorBasedBuilder):
  """Questions 0, 1, ..."""

  VERSION = tfds.core.Version("1.0.0")
  count, answer = 3, "a"

  def _info(self):
    features = {
      "question": tfds.features.Text(),
      "answers": tfds.features.Sequence(tfds.features.Text()),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(self.count), "test": self._generate_examples(2)}

  def _generate_examples(self, count):
    for index in range(count):
      yield index, {"question": str(index), "answers": [self.answer]}


def prepare_numbers(folder, count=3, answer="a", version="1.0.0"):
  shutil.rmtree(folder, ignore_errors=True)
  with pytest.MonkeyPatch.context() as patch, prepare.quiet():
    patch.setattr(DigestNumbers, "count", count)
    patch.setattr(DigestNumbers, "answer", answer)
    patch.setattr(DigestNumbers, "VERSION", tfds.core.Version(version))
    DigestNumbers(data_dir=folder, file_format="array_record").download_and_prepare()
    return open_source("tfds:digest_numbers/train").digest


def test_other_tfds_data_sets_go_by_their_rows(tmp_path, monkeypatch):
  """Those prepared again in their place with as many rows, too."""
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  first = prepare_numbers(tmp_path)
  assert prepare_numbers(tmp_path) == first == open_source("tfds:digest_numbers/train").digest
  assert prepare_numbers(tmp_path, answer="b") != first
  assert prepare_numbers(tmp_path, version="2.0.0") == first
  assert prepare_numbers(tmp_path, count=4) != first
  assert open_source("tfds:digest_numbers/test").digest != first


def hub_digest(folder, rows):
  folder.mkdir(exist_ok=True)
  (folder / "train.jsonl").write_text(text(rows))
  return open_source(f"hf:{folder}/train", FIELDS).digest


def test_data_sets_of_the_hub_go_by_their_rows(tmp_path, monkeypatch):
  datasets = pytest.importorskip("datasets")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  first = hub_digest(tmp_path / "one", ROWS)
  assert hub_digest(tmp_path / "two", ROWS) == first
  others = [row | {"reply": "tan"} for row in ROWS]  # as many bytes
  assert hub_digest(tmp_path / "one", others) != first
  assert hub_digest(tmp_path / "one", ROWS[::-1]) != first


@pytest.mark.parametrize("name", BUILTIN_DATASETS)
def test_the_table_of_built_in_data_sets_is_that_of_their_builders(cache, name):
  builder = prepare.prepared_builder(name)
  assert builder.name == name and set(builder.info.splits) == set(BUILTIN_DATASETS[name].splits)
