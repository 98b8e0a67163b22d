"""What the tests of training share: the toy method alongside them, whose steps are traced once."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(scope="module", autouse=True)
def _steps_once(steps_once):
  pass
