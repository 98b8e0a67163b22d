"""What the steps of a job have made."""

from frozen_jax.run.steps import digest


def outputs(folder):
  """The digests of a job's files and folders, by name."""
  made = (path for path in folder.iterdir() if path.name.endswith(".made.json"))
  names = [path.name.removesuffix(".made.json") for path in made]
  return {name: digest(folder / name) for name in names}
