"""What a pipeline has made."""

from frozen_jax.pipelines.artifacts import digest


def artifact_digests(folder):
  """The digests of a folder's artifacts, by name."""
  records = (path for path in folder.iterdir() if path.name.endswith(".meta.json"))
  names = [path.name.removesuffix(".meta.json") for path in records]
  return {name: digest(folder / name) for name in names}
