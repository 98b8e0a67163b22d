"""The config's `candidates` section, with its defaults. Imports no jax: see run/defaults.py."""

from ml_collections import ConfigDict


def candidates_defaults() -> ConfigDict:
  """A fresh section: what pass one samples, and how it is shown to pass two."""
  return ConfigDict(
    {
      "of": "answer",  # the stage whose prompt proposes the answers
      "samples": 16,  # of each question
      "temperature": 1.0,
      "top_k": 0,
      "top_p": 1.0,
      "folds": 4,  # training questions are answered by prompts that were tuned on the other folds
      "questions": 0,  # training questions that are sampled for pass two; 0: all
      "learn_from": "all",  # of these; or right: those alone that are shown a right candidate
      "orders": 4,  # times that each of them is shown, its candidates in another order each time
      "most": 3,  # candidates shown at most
      "template": {
        "prompt": "Question: {question}\nProposed answers: {candidates}\nAnswer:",
        "candidate": "{text} ({likelihood}%)",  # or with {count}, {share} (percent) of the samples
        "separator": ", ",
      },
    }
  )


def shrink_candidates(candidates: ConfigDict) -> None:
  """Makes it that of a `:smoke` variant: the same work in about a minute."""
  candidates.update({"samples": 4, "folds": 2, "questions": 16, "orders": 2})
