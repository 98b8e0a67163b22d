"""The tiny models that whole runs are on."""

from tests.run.conftest import (  # noqa: F401
  encoder,
  lm,
  make_encoder_folder,
  make_folder,
  shared,
  tiny,
)
