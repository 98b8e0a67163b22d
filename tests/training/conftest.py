"""What the tests of training share: the toy method alongside them."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
