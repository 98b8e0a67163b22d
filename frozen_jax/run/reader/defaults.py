"""The config's `reader` section, with its defaults. Imports no jax: see run/defaults.py."""

from ml_collections import ConfigDict

# Of passages; see pack.py.
ORDERS = ("none", "bm25_1", "bm25", "dense", "fused", "lm", "re_ranked", "blended", "gold")


def reader_defaults() -> ConfigDict:
  """A fresh section; `data.train`, `data.validation`, `data.test` are then its questions."""
  return ConfigDict(
    {
      "corpus": "world_facts",  # the built-in one, or a file of retrieval/corpus.py
      "retrievers": ("bm25", "dense"),
      "fusion": "reciprocal_ranks",  # of several retrievers; or weighted_sum, of their scores
      "weights": (1.0, 1.0),  # of each retriever's scores in weighted_sum
      "encoder": "minilm-l6-v2",  # of the dense retriever
      "question_encoder": "",  # of its questions; empty: the same
      "encoder_dtype": "bfloat16",  # in which they multiply: float32 or bfloat16
      "separator": " ",  # between a passage's title and its text for the encoder
      "encoder_length": 256,  # tokens to which passages are cut for it
      "depth": 100,  # passages retrieved for a question, and re-ranked
      "questions": 1000,  # the first so many training questions tune the reader; the re-ranker
      # trains on the others
      "budgets": (256, 512),  # tokens that the LM sees: prompt vectors, text and answer
      "orders": ORDERS,
      "ranks": (1, 5, 20, 100),  # at which recall is taken
      "read": "blended",  # the order and
      "budget": 512,  # the budget with which a stage is tuned
      "best": "best_first",  # or best_last: nearest to the question
      "overflow": "skip",  # of a passage longer than the budget: error, skip or cut
      "most": 0,  # passages of a prompt at most; 0: as many as fit
      "lm_depth": 16,  # passages ranked by the LM's likelihood
      "template": {
        "prompt": "{passages}\n\nQuestion: {question}\nAnswer:",
        "passage": "{title}: {text}",
        "bare": "{text}",
        "separator": "\n\n",
      },
      "re_ranker": {
        "base": "minilm-l6-v2",  # an encoder, or a CrossEncoder's folder
        "train": "encoder",  # encoder, lora or head
        "lora": {"rank": 8, "alpha": 16.0, "targets": ("attn/q", "attn/v")},
        "dtype": "bfloat16",
        "length": 256,  # tokens of question and passage
        "positives": "gold",  # or answers: the best passage found that holds an answer
        "negatives": 7,
        "negatives_among": "positives",  # of other questions of a data set, so that nothing of a
        # passage itself tells which it is; or corpus: any passage found
        "in_batch": 0,
        "mining_depth": 30,  # negatives are drawn from so many, the best ranked
        "drop_answers": True,  # as negatives, passages that hold an answer
        "steps": 300,  # 0: the base is taken as it is
        "batch_size": 8,
        "accumulate": 1,
        "log_every": 10,
        "validate_every": 50,
        "validate_questions": 200,
        "checkpoint_every": 50,
        "patience": 0,
        "learning_rate": {"encoder": 1e-4, "head": 1e-3, "lora": 1e-3},
        "warmup_steps": 30,
        "final_fraction": 0.1,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
      },
    }
  )


def for_countries(config: ConfigDict) -> None:
  """Fits a reader's config to the built-in corpus: 390 short passages, nobody need read many."""
  reader, config.data.lengths = config.reader, (64, 96, 128, 192)
  reader.update({"depth": 20, "ranks": (1, 5, 20), "questions": 500, "lm_depth": 8})
  reader.update({"budgets": (96, 192), "budget": 192})
  reader.re_ranker.update({"length": 128, "steps": 150})


def shrink_reader(reader: ConfigDict) -> None:
  """Makes it that of a `:smoke` variant: the same work in about a minute."""
  reader.update({"depth": 8, "questions": 16, "lm_depth": 2, "ranks": (1, 5)})
  reader.re_ranker.update(
    {
      "steps": 3,
      "batch_size": 2,
      "negatives": 3,
      "log_every": 1,
      "validate_every": 2,
      "validate_questions": 4,
      "checkpoint_every": 2,
      "warmup_steps": 1,
    }
  )
