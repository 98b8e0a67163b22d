"""The stand-in for gcloud: it keeps a folder for each of two hosts and runs there what is to run
there.
"""

import json
import os
import shutil
import subprocess
import sys

from tests.launch import presets
from tests.launch.presets import LAUNCH
from tests.processes import HANGS_AFTER

MESH = [f"--config.mesh.{axis}" for axis in ("data=1", "fsdp=16", "tensor=1")]
ARGUMENTS = [*presets.ARGUMENTS, "--workdir=gs://bucket/run"]
POD = {"PRESET": "v5e-16", "TPU_NAME": "pod", "ZONE": "zone", "POLL_SECONDS": "0"}

# Each line of `states` is what one look at the queued resource finds; the last line stays.
GCLOUD = f"""#!{sys.executable}
import json, os, pathlib, shutil, subprocess, sys
cloud = pathlib.Path(os.environ["CLOUD"])
argv = sys.argv[1:]
with (cloud / "calls").open("a") as calls:
  print(json.dumps(argv), file=calls)
hosts = [cloud / "host0", cloud / "host1"]
flag = lambda name: next(a.partition("=")[2] for a in argv if a.startswith(f"--{{name}}="))
if argv[2] == "queued-resources":
  if argv[3] == "describe":
    state, *later = (cloud / "states").read_text().split()
    if later:
      (cloud / "states").write_text(" ".join(later))
    if state == "ABSENT":
      sys.exit("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no such resource")
    if state == "BROKEN":
      sys.exit("ERROR: no network")
    print(state)
  elif argv[3] == "create":
    for host in hosts:
      host.mkdir(exist_ok=True)
  elif argv[3] == "delete":
    for host in hosts:
      shutil.rmtree(host, ignore_errors=True)
  sys.exit()
lost = cloud / "lost"
if lost.exists():
  left = int(lost.read_text()) - 1
  lost.write_text(str(left)) if left else lost.unlink()
  sys.exit(255)
failed = 0
for host in hosts if flag("worker") == "all" else hosts[:1]:
  if argv[3] == "scp":
    shutil.copy(argv[4], host / argv[5].partition(":")[2])
  else:
    here = {{**os.environ, "HOME": str(host), "HOST": host.name}}
    done = subprocess.run(["bash", "-c", flag("command")], cwd=host, env=here)
    failed = done.returncode or failed
sys.exit(failed)
"""
# Each line of `runs` is how one run ends on every host; the last line stays.
PYTHON = f"""#!{sys.executable}
import json, os, pathlib, sys
cloud, host = pathlib.Path(os.environ["CLOUD"]), os.environ["HOST"]
done = cloud / f"{{host}}.runs"
count = len(done.read_text().splitlines()) if done.exists() else 0
distributed = os.environ.get("FROZEN_JAX_DISTRIBUTED")
with done.open("a") as file:
  print(json.dumps([sys.argv[1:], distributed, os.getcwd()]), file=file)
print(f"{{host}} runs", flush=True)
ends = (cloud / "runs").read_text().split()
end = ends[min(count, len(ends) - 1)]
if end == "down":  # with the shell that waits for it
  os.kill(os.getppid(), 9)
  end = "1"
sys.exit(int(end))
"""


class Cloud:
  """A clone, programs to stand in, and two hosts."""

  def __init__(self, folder):
    self.folder, self.bin, self.clone = folder, folder / "bin", folder / "clone"
    self.bin.mkdir()
    shutil.copytree(LAUNCH, self.clone / "launch")
    git = ["git", "-C", str(self.clone), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "clone"]):
      subprocess.run([*git, *command], check=True)
    uv = f"#!/bin/sh\necho uv $HOST $PWD \"$@\" >>'{folder}/uv'\n"
    for name, text in (("gcloud", GCLOUD), ("stand-in", PYTHON), ("uv", uv)):
      (self.bin / name).write_text(text)
      (self.bin / name).chmod(0o755)
    self.has(states="ABSENT ACTIVE", runs="0")

  def has(self, hosts=False, **files):
    for name, text in files.items():
      (self.folder / name).write_text(text)
    for name in ("host0", "host1") if hosts else ():
      (self.folder / name).mkdir()

  def run(self, *arguments, **env):
    env = {
      **os.environ,
      **POD,
      "CLOUD": str(self.folder),
      "PATH": f"{self.bin}:{os.environ['PATH']}",
      "PYTHON": "stand-in",
      **env,
    }
    command = ["bash", str(self.clone / "launch" / "tpu_pod.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=HANGS_AFTER)

  def install(self, *arguments):
    """Runs install.sh alone."""
    env = {**os.environ, "HOME": str(self.folder), "PATH": f"{self.bin}:{os.environ['PATH']}"}
    command = ["bash", str(self.clone / "launch" / "install.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=HANGS_AFTER)

  def calls(self):
    """What gcloud was called with, from the noun on; looks at the state left out."""
    return [line[2:] for line in _lines(self.folder / "calls") if line[3] != "describe"]

  def steps(self):
    """The calls by a word each."""
    return [step_of(call) for call in self.calls()]

  def runs(self, host):
    return _lines(self.folder / f"{host}.runs")


def _lines(file):
  return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def step_of(call):
  """A call of gcloud by a word."""
  if call[0] == "queued-resources" or call[1] == "scp":
    return call[1]
  words = ("install.sh", *(f"detached.sh {verb}" for verb in ("start", "status", "follow", "stop")))
  return next(word.split()[-1] for word in words if word in call[-1])
