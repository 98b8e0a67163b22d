"""A stage's `init_from` and `frozen_inputs`: from "part=stage/part" to what is linked to what."""

from collections.abc import Collection, Iterable

from frozen_jax.core.errors import UserError


def parse_links(
  entries: Iterable[str], parts: Collection[str], stages: Collection[str], where: str
) -> dict[str, str]:
  """("part=stage/part", ...) -> {"part": "stage/part"}.

  parts: those that there may be; stages: those of the config; where: the key, for messages. Raises
  UserError for another form, and for names that there are not.
  """
  links = {}
  for entry in entries:
    part, equals, link = entry.partition("=")
    if not equals:
      raise UserError(f"{entry!r} is not of the form name=value")
    if part not in parts:
      known = ", ".join(parts) or "none"
      raise UserError(f"{where} names {part!r}; the parts of the stage's method are: {known}")
    if link.partition("/")[0] not in stages:
      raise UserError(f"{entry} names no stage; config.stages has {', '.join(stages)}")
    links[part] = link
  return links
