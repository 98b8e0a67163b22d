"""A frozen LM as a reader (Levine et al., 2022): retrieve, re-rank, pack, read.

    python -m frozen_jax.main --config=configs/frozen_reader.py

Before the stages, each a file in WORKDIR/reader that is made anew only where what it is made of has
changed: `retrieve` (BM25 and a dense index, fused), `re_ranker` (training it), `re_rank`, `pack`.
`--config.until=NAME` stops behind one of them. Then stage `reader` tunes a prompt on the packed
passages, and the table has the reader on every order of passages at every budget of tokens.

The default needs no network: two passages on each country, and the questions of world_facts. Not
measured yet.

Variants: `:smoke` the same in about a minute; `:nq` Natural Questions from files:

    python -m frozen_jax.main --config=configs/frozen_reader.py:nq \\
      --config.reader.corpus=corpus.jsonl.gz --config.data.train=nq_train.jsonl.gz \\
      --config.data.validation=nq_validation.jsonl.gz --config.data.test=nq_test.jsonl.gz
"""

from ml_collections import ConfigDict

from frozen_jax.run.defaults import defaults, shrink
from frozen_jax.run.reader.defaults import reader_defaults, shrink_reader


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  config.reader = reader_defaults()
  config.until = ""  # retrieve, re_ranker, re_rank or pack: stop behind it
  config.order = ("reader",)
  config.stages.reader = ConfigDict({"method": "prompt_tuning"})
  config.baseline = "none 512"
  config.model.dtype = "bfloat16"
  config.data.lengths = (128, 256, 384, 512)
  config.prompt.text = "Read the texts and answer the question with a few words from them."
  config.train.update({"steps": 100, "batch_size": 8})
  config.train.validate_examples = 100
  config.evaluate.batch_size = 16
  if variant == "smoke":
    shrink(config)
    shrink_reader(config.reader)
    config.reader.update({"budgets": (144,), "budget": 144})
    config.reader.orders = ("none", "bm25", "lm", "re_ranked", "gold")
    config.data.lengths = (144,)
    config.train.batch_size = 4
    config.evaluate.update({"max_examples": 4, "max_new_tokens": 8})
    config.baseline = "none 144"
  elif variant == "nq":
    _natural_questions(config)
  elif variant:
    raise ValueError(f"no variant {variant!r}; there are: smoke, nq")
  return config


def _natural_questions(config: ConfigDict) -> None:
  """Natural Questions with a corpus of Wikipedia passages; the files are named by flags."""
  config.reader.corpus = "corpus.jsonl.gz"
  config.data.train = "nq_train.jsonl.gz"
  config.data.validation = "nq_validation.jsonl.gz"
  config.data.test = "nq_test.jsonl.gz"
  config.reader.re_ranker.steps = 1000
  config.train.steps = 200
