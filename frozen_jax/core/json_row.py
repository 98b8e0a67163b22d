"""One line of a JSON-lines file."""

import json
from typing import Any

from frozen_jax.core.errors import UserError


def parse_row(line: bytes | str, where: str) -> dict[str, Any]:
  """The JSON object of a line.

  Raises:
    UserError: the line is no JSON object; the message begins with `where`.
  """
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as error:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8 text"
    raise UserError(f"{where}: malformed JSON ({reason}); fix or remove that line") from error
  if not isinstance(row, dict):
    raise UserError(f"{where}: a JSON {type(row).__name__}, not an object; write {{...}} there")
  return row
