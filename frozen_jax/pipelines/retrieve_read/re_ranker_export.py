"""The re-ranker of a reader's run as an export: a cross-encoder of sentence-transformers."""

import pathlib
import shutil

from frozen_jax.core.errors import UserError
from frozen_jax.core.object_store import AnyPath
from frozen_jax.export.cross_encoder import read_cross_encoder
from frozen_jax.export.merged import REPLACED as OF_OTHER_MODELS
from frozen_jax.pipelines.artifacts import Artifacts
from frozen_jax.pipelines.retrieve_read.pipeline import RE_RANKER, READER_FOLDER

# Files of other models that would disturb one in their folder, as patterns.
REPLACED = (*OF_OTHER_MODELS, "modules.json", "*sentence_*.json", "*sentence_transformers.json")

_CARD = """---
library_name: sentence-transformers
pipeline_tag: text-ranking
tags: [cross-encoder, frozen_jax]
---

# A re-ranker of passages, trained by frozen_jax

How likely a passage answers a question, as a score of the pair.

    from sentence_transformers import CrossEncoder

    model = CrossEncoder("FOLDER")
    scores = model.predict([("Where is Lima?", "Lima is the capital of Peru.")])
"""


def write_re_ranker(folder: pathlib.Path, workdir: AnyPath) -> None:
  """Writes the trained re-ranker of a workdir to a folder, with a model card.

  Raises UserError for a workdir without one, and for one whose files are damaged.
  """
  stored = Artifacts(workdir / READER_FOLDER).found(RE_RANKER)
  if not stored.exists():
    raise UserError(
      f"{workdir} holds no re-ranker; configs/frozen_reader.py trains one, where reader.rankings"
      " has re_ranked or blended"
    )
  read_cross_encoder(str(stored), progress=False)
  shutil.copytree(stored, folder, dirs_exist_ok=True)
  (folder / "README.md").write_text(_CARD, encoding="utf-8")
