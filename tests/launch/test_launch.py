"""The launchers run frozen_jax.main on every host, with the user's arguments, and nothing else."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest
import yaml

from tests.launch.presets import ARGUMENTS, LAUNCH

TPU, SLURM, JOBSET = LAUNCH / "tpu_pod.sh", LAUNCH / "slurm.sbatch", LAUNCH / "k8s" / "jobset.yaml"
MAIN = ["-m", "frozen_jax.main", *ARGUMENTS]
POD = {"TPU_NAME": "pod", "ZONE": "zone"}

# Stands in for a program: appends what it was called with to a file; srun's stand-in then runs its
# command once per task as srun does.
STAND_IN = f"""#!{sys.executable}
import json, os, subprocess, sys
keys = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
with open(os.environ["CALLS"], "a") as calls:
  call = {{"argv": [os.path.basename(sys.argv[0]), *sys.argv[1:]]}}
  print(json.dumps({{**call, **{{k: os.environ.get(k) for k in keys}}}}), file=calls)
if sys.argv[0].endswith("scontrol"):
  print("node-a\\nnode-b")
if sys.argv[0].endswith("srun"):
  command = sys.argv[1:]
  while command[0].startswith("-"):
    command.pop(0)
  for task in ("0", "1"):
    subprocess.run(command, check=True, env={{**os.environ, "SLURM_PROCID": task}})
"""


def launch(script, *arguments, path="", **env):
  """Runs a launcher with these variables and no cluster around it."""
  clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
  env = {**clean, **env, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
  command = ["bash", str(script), *arguments]
  return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.fixture
def cluster(tmp_path):
  """A folder of stand-ins to run with, and what was called: (keyword arguments, read calls)."""
  for name in ("gcloud", "srun", "scontrol", "python"):
    (tmp_path / name).write_text(STAND_IN)
    (tmp_path / name).chmod(0o755)
  calls = tmp_path / "calls"
  read = lambda: [json.loads(line) for line in calls.read_text().splitlines()]
  return {"path": str(tmp_path), "CALLS": str(calls)}, read


@pytest.mark.parametrize("script", [TPU, SLURM], ids=lambda p: p.name)
def test_bash_parses_it(script):
  done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, "")


def test_tpu_pod_runs_main_on_every_worker(cluster):
  env, calls = cluster
  done = launch(TPU, *ARGUMENTS, **POD, **env)
  assert done.returncode == 0, done.stderr
  (call,) = calls()
  *ssh, remote = call["argv"]
  assert ssh == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=zone", "--worker=all"]
  flag, _, remote = remote.partition("=")
  assert flag == "--command"
  start = ["cd", "frozen_jax", "&&", "FROZEN_JAX_DISTRIBUTED=auto", "exec", "python3"]
  assert shlex.split(remote) == [*start, *MAIN]


def test_slurm_runs_main_once_a_task_and_says_where_to_meet(cluster):
  env, calls = cluster
  done = launch(SLURM, *ARGUMENTS, SLURM_JOB_NODELIST="node-[a-b]", SLURM_NTASKS="2", **env)
  assert done.returncode == 0, done.stderr
  scontrol, srun, *tasks = calls()
  assert (scontrol["argv"][0], srun["argv"][0]) == ("scontrol", "srun")
  assert tasks == [
    {
      "argv": ["python", *MAIN],
      "COORDINATOR_ADDRESS": "node-a:12321",
      "NUM_PROCESSES": "2",
      "PROCESS_ID": str(task),
    }
    for task in range(2)
  ]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_dry_run_prints_the_command_and_runs_nothing(cluster, at):
  env, _ = cluster
  arguments = [*ARGUMENTS[:at], "--dry-run", *ARGUMENTS[at:]]
  tpu = launch(TPU, *arguments, **POD, **env)
  slurm = launch(SLURM, *arguments, **env)
  assert (tpu.returncode, slurm.returncode) == (0, 0)
  assert shlex.split(shlex.split(tpu.stdout)[-1])[-4:] == MAIN
  assert shlex.split(slurm.stdout)[-5:] == ["python", *MAIN]
  assert not pathlib.Path(env["CALLS"]).exists()


def test_what_dry_run_prints_does_what_the_launcher_does(cluster):
  env, calls = cluster
  job = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NTASKS": "2"}
  for script, settings in ((TPU, POD), (SLURM, job)):
    shown = launch(script, "--dry-run", *ARGUMENTS, **settings, **env)
    copied = pathlib.Path(env["path"]) / "copied.sh"
    copied.write_text(shown.stdout)
    pathlib.Path(env["CALLS"]).unlink(missing_ok=True)
    assert launch(copied, **env).returncode == 0
    by_hand = calls()
    pathlib.Path(env["CALLS"]).unlink()
    assert launch(script, *ARGUMENTS, **settings, **env).returncode == 0
    assert [c for c in calls() if c["argv"][0] != "scontrol"] == by_hand


@pytest.mark.parametrize("script", [TPU, SLURM], ids=lambda p: p.name)
def test_without_a_cluster_it_says_so(script):
  done = launch(script, *ARGUMENTS, TPU_NAME="", ZONE="")
  assert done.returncode == 2
  assert done.stderr.startswith("error:") and done.stderr.count("\n") == 1


def test_jobset_runs_main_on_every_pod_and_says_where_to_meet():
  jobset = yaml.safe_load(JOBSET.read_text())
  name = jobset["metadata"]["name"]
  (hosts,) = jobset["spec"]["replicatedJobs"]
  job = hosts["template"]["spec"]
  (container,) = job["template"]["spec"]["containers"]
  assert container["command"] == ["python", "-m", "frozen_jax.main"]
  assert all(argument.startswith("--") for argument in container["args"])
  env = {entry["name"]: entry for entry in container["env"]}
  assert set(env) == {"COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"}
  assert env["COORDINATOR_ADDRESS"]["value"] == f"{name}-{hosts['name']}-0-0.{name}:12321"
  assert env["NUM_PROCESSES"]["value"] == str(job["parallelism"]) == str(job["completions"])
  assert job["completionMode"] == "Indexed", "without it no pod has an index"
  assert hosts["replicas"] == 1
  paths = [mount["mountPath"] for mount in container["volumeMounts"]]
  workdir = next(a.split("=")[1] for a in container["args"] if a.startswith("--workdir"))
  assert any(workdir.startswith(path) for path in paths), "the workdir would die with the pod"
