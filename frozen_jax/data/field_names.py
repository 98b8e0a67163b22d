"""The names of `data.fields`: each is to be a field of some source that it applies to."""

import difflib
from collections.abc import Sequence

from frozen_jax.core.errors import UserError
from frozen_jax.data.sources import Source


def check_fields(fields: Sequence[str], sources: Sequence[Source]) -> None:
  """Checks the entries `ours=theirs` of a config against the sources that are opened with them.

  A source without a field keeps its own names (`data.examples.fields_present`), which is right for
  one that has them by our names, and silent about a name that is misspelt.

  Raises:
    UserError: a name that no source has, with the nearest ones, and what there is.
  """
  there = {source.name: source.stored_names for source in sources}
  known = {name: None for names in there.values() for name in names}
  for entry in fields:
    theirs = entry.partition("=")[2]
    if theirs.partition(".")[0] in known:
      continue
    near = difflib.get_close_matches(theirs, list(known), n=2, cutoff=0.6)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    listed = "; ".join(f"{source} has {', '.join(names)}" for source, names in there.items())
    raise UserError(f"config.data.fields: {entry} names a field of no source{meant}; {listed}")
