"""The tiny models that whole runs are on, whose training steps are traced once a file."""

import pytest

from tests.run.conftest import (  # noqa: F401
  encoder,
  lm,
  make_encoder_folder,
  make_folder,
  shared,
  tiny,
)


@pytest.fixture(scope="module", autouse=True)
def _steps_once(steps_once):
  pass
