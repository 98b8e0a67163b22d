"""Fills in jobset.yaml for a machine of ../presets.txt, and gives it to kubectl.

    PRESET=v5e-256 IMAGE=REGISTRY/frozen_jax:tpu QUEUE=team python launch/k8s/jobset.py \
      --config=configs/recursive.py:llama3_8b --workdir=gs://BUCKET/recursive [--dry-run]

`--dry-run`, anywhere, prints the JobSet and runs nothing. The other arguments are those of
frozen_jax.main, after the preset's mesh, and overrule it. Variables:

  PRESET  a name of presets.txt
  IMAGE   made from ../Containerfile
  CLAIM   a volume that all pods can write to, mounted at /runs, where the workdir is then; not for
          a workdir on a bucket
  QUEUE   a local queue of Kueue; without it there is no label
  NAME    of the JobSet (default: frozen-jax); small letters, digits and hyphens, a letter first
  HOSTS   of GPUs, if more than one: the mesh's axis `data` is over them. Across hosts GKE needs
          Google's plugin for NCCL in the pod besides
"""

import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys

import yaml

HERE = pathlib.Path(__file__).parent
AXES = ("data", "fsdp", "tensor")
# As Kubernetes wants them; with what it adds, the names of pods stay within its 63 characters.
NAME = re.compile("[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


class InvalidInput(Exception):
  """What was given is wrong; the message says how to mend it."""


def presets():
  """name -> {column: text} of presets.txt, whose last comment names the columns."""
  lines = (HERE.parent / "presets.txt").read_text(encoding="utf-8").splitlines()
  columns = [line for line in lines if line.startswith("#")][-1].lstrip("# ").split()
  rows = (line.split() for line in lines if line and not line.startswith("#"))
  return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}


def jobset(arguments, settings):
  """The JobSet that runs frozen_jax.main with `arguments`; `settings` as variables give them."""
  missing = [name for name in ("PRESET", "IMAGE") if not settings.get(name)]
  if missing:
    raise InvalidInput(f"set {', '.join(missing)}; the head of {__file__} shows how")
  _check_workdir(arguments, settings.get("CLAIM"))
  name = settings.get("NAME") or "frozen-jax"
  if not NAME.fullmatch(name):
    raise InvalidInput(
      f"NAME={name} must be small letters, digits and hyphens, with a letter first, at most 40"
    )
  table = presets()
  if settings["PRESET"] not in table:
    raise InvalidInput(f"PRESET={settings['PRESET']} is none of {', '.join(table)}")
  preset = table[settings["PRESET"]]
  hosts = settings.get("HOSTS") or preset["hosts"]
  is_tpu = preset["topology"] != "-"
  if not hosts.isdecimal() or not int(hosts) or (is_tpu and hosts != preset["hosts"]):
    raise InvalidInput(f"HOSTS={hosts} does not fit; {preset['name']} has {preset['hosts']}")

  filled = yaml.safe_load((HERE / "jobset.yaml").read_text(encoding="utf-8"))
  _name(filled, name, settings.get("QUEUE"))
  job = filled["spec"]["replicatedJobs"][0]["template"]["spec"]
  job["parallelism"] = job["completions"] = int(hosts)
  pod = job["template"]["spec"]
  _accelerator(filled, pod, preset)
  main = pod["containers"][0]
  main["image"] = settings["IMAGE"]
  _volume(pod, settings.get("CLAIM"))
  _variable(main, "NUM_PROCESSES")["value"] = hosts
  sizes = dict(zip(AXES, map(int, preset["mesh"].split(",")), strict=True))
  sizes["data"] *= int(hosts) // int(preset["hosts"])
  mesh = [f"--config.mesh.{axis}={size}" for axis, size in sizes.items()]
  # Kubernetes puts variables in for $(NAME), and takes $$ for $.
  main["args"] = [*mesh, *(argument.replace("$", "$$") for argument in arguments)]
  return filled


def _check_workdir(arguments, claim):
  """InvalidInput for a workdir that would be lost with its pod."""
  workdir = ""  # of several the last one counts
  for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
    name, given, value = argument.partition("=")
    if name in ("-workdir", "--workdir"):
      workdir = value if given else following
  if workdir.startswith(("gs://", "s3://")):
    return
  if pathlib.PurePosixPath(os.path.normpath(workdir)).parts[:2] != ("/", "runs"):
    raise InvalidInput(
      f"--workdir={workdir} would be lost with its pod; put it on a bucket (gs://, s3://), or below"
      " /runs on a volume (CLAIM)"
    )
  if not claim:
    raise InvalidInput(f"set CLAIM, the volume of /runs; the head of {__file__} shows how")


def _volume(pod, claim):
  """The volume of a claim; without one, none."""
  runs = next(one for one in pod["volumes"] if one["name"] == "runs")
  if claim:
    runs["persistentVolumeClaim"]["claimName"] = claim
    return
  pod["volumes"].remove(runs)
  mounts = pod["containers"][0]["volumeMounts"]
  mounts[:] = [one for one in mounts if one["name"] != "runs"]


def _name(filled, name, queue):
  metadata = filled["metadata"]
  address = _variable(
    filled["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0],
    "COORDINATOR_ADDRESS",
  )
  address["value"] = address["value"].replace(metadata["name"], name)
  metadata["name"] = name
  if queue:
    metadata["labels"]["kueue.x-k8s.io/queue-name"] = queue
  else:
    del metadata["labels"]


def _accelerator(filled, pod, preset):
  chips = int(preset["chips_per_host"])
  if preset["topology"] != "-":
    pod["nodeSelector"] = {
      "cloud.google.com/gke-tpu-accelerator": preset["gke_accelerator"],
      "cloud.google.com/gke-tpu-topology": preset["topology"],
    }
    pod["containers"][0]["resources"] = {"limits": {"google.com/tpu": chips}}
  else:
    pod["nodeSelector"] = {"cloud.google.com/gke-accelerator": preset["gke_accelerator"]}
    pod["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": chips}}
    del filled["metadata"]["annotations"]


def _variable(container, name):
  return next(entry for entry in container["env"] if entry["name"] == name)


def main(argv):
  """The exit status: kubectl's, or 2 after a line that says what is wrong."""
  if "--help" in argv:
    print(__doc__)
    return 0
  arguments = [argument for argument in argv if argument != "--dry-run"]
  try:
    text = yaml.safe_dump(jobset(arguments, os.environ), sort_keys=False, width=1000)
  except InvalidInput as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  if len(arguments) < len(argv):
    print(text, end="")
    return 0
  if not shutil.which("kubectl"):
    print("error: kubectl is not installed, or not on the PATH", file=sys.stderr)
    return 2
  return subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True).returncode


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
