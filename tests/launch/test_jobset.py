"""JobSets for every preset: kubernetes' own schema of a job, JobSet's fields, and what they run."""

import os
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from frozen_jax.sharding.hosts import initialize_arguments
from tests.launch import presets
from tests.launch.presets import GENERATOR, LAUNCH, PRESETS, TPUS, mesh

ARGUMENTS = [*presets.ARGUMENTS, "--workdir=/runs/run"]
SETTINGS = {"IMAGE": "registry/image:tag", "CLAIM": "volume", "QUEUE": "team"}
AS_IT_STANDS = yaml.safe_load((LAUNCH / "k8s" / "jobset.yaml").read_text())
# PyPI has no schema of JobSet (jobset.x-k8s.io/v1alpha2). These are its fields that are used.
JOBSET = {
  "apiVersion": str,
  "kind": str,
  "metadata": dict,
  "spec": {
    "network": {"enableDNSHostnames": bool},
    "failurePolicy": {
      "maxRestarts": int,
      "rules": [{"name": str, "action": str, "onJobFailureReasons": list}],
    },
    "replicatedJobs": [{"name": str, "replicas": int, "template": dict}],
  },
}


def generate(*arguments, path="", **settings):
  env = {"PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"], **settings}
  command = [sys.executable, str(LAUNCH / "k8s" / "jobset.py"), *arguments]
  return subprocess.run(command, capture_output=True, text=True, env=env)


def check_fields(value, fields, where="jobset"):
  if isinstance(fields, type):
    assert isinstance(value, fields), where
  elif isinstance(fields, list):
    for index, item in enumerate(value):
      check_fields(item, fields[0], f"{where}[{index}]")
  else:
    assert set(value) == set(fields), where
    for name in fields:
      check_fields(value[name], fields[name], f"{where}.{name}")


def check(jobset):
  check_fields(jobset, JOBSET)
  assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  rule = jobset["spec"]["failurePolicy"]["rules"][0]
  assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
  (hosts,) = jobset["spec"]["replicatedJobs"]
  job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": jobset["metadata"]}
  for version in ("1.31", kubernetes_validate.latest_version()):
    kubernetes_validate.validate(job | hosts["template"], version, strict=True)


def job_of(jobset):
  return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def container_of(jobset):
  return job_of(jobset)["template"]["spec"]["containers"][0]


def environment(jobset, index):
  """The variables of a pod, as kubernetes sets them."""
  found = {}
  for entry in container_of(jobset)["env"]:
    path = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
    assert not path or path.endswith("['batch.kubernetes.io/job-completion-index']")
    found[entry["name"]] = str(index) if path else entry["value"]
  return found


def test_the_file_as_it_stands_fits_the_schemas():
  check(AS_IT_STANDS)


@pytest.mark.parametrize(
  "path, wrong",
  [
    (["parallelism"], "four"),
    (["template", "spec", "restartPolicy"], 1),
    (["template", "spec", "containers", 0, "resource"], {}),
    (["podFailurePolicy", "rules", 0, "onExitCodes", "values"], "2"),
  ],
)
def test_the_check_finds_mistakes(path, wrong):
  jobset = yaml.safe_load(yaml.safe_dump(AS_IT_STANDS))
  inner = job_of(jobset)
  for name in path[:-1]:
    inner = inner[name]
  inner[path[-1]] = wrong
  with pytest.raises(kubernetes_validate.ValidationError):
    check(jobset)


def test_the_file_as_it_stands_is_the_first_preset():
  settings = {"PRESET": "v5e-16", "IMAGE": "IMAGE", "CLAIM": "CLAIM", "QUEUE": "QUEUE"}
  arguments = container_of(AS_IT_STANDS)["args"]
  made = GENERATOR.jobset(arguments, settings)
  assert container_of(made)["args"][-len(arguments) :] == arguments
  container_of(made)["args"] = arguments
  assert made == AS_IT_STANDS


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_the_schemas_and_its_machine(name):
  preset = PRESETS[name]
  done = generate(*ARGUMENTS, "--dry-run", PRESET=name, **SETTINGS)
  assert (done.returncode, done.stderr) == (0, "")
  jobset = yaml.safe_load(done.stdout)
  check(jobset)
  job, container = job_of(jobset), container_of(jobset)
  hosts = int(preset["hosts"])
  assert job["parallelism"] == job["completions"] == hosts
  selector = job["template"]["spec"]["nodeSelector"]
  chips = int(preset["chips_per_host"])
  if name in TPUS:
    assert selector == {
      "cloud.google.com/gke-tpu-accelerator": preset["gke_accelerator"],
      "cloud.google.com/gke-tpu-topology": preset["topology"],
    }
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
  else:
    assert selector == {"cloud.google.com/gke-accelerator": preset["gke_accelerator"]}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": chips}
  assert container["image"] == SETTINGS["IMAGE"]
  assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
  axes = dict(zip(("data", "fsdp", "tensor"), mesh(preset), strict=True))
  flags = [f"--config.mesh.{axis}={size}" for axis, size in axes.items()]
  assert container["command"] == ["python", "-m", "frozen_jax.main"]
  # Kubernetes takes $$ for $, and $(NAME) for a variable.
  assert container["args"] == [*flags, *(argument.replace("$", "$$") for argument in ARGUMENTS)]
  started = initialize_arguments(environment(jobset, hosts - 1))
  if hosts == 1:
    assert started is None
  else:
    assert (started["num_processes"], started["process_id"]) == (hosts, hosts - 1)


def test_a_name_several_gpu_hosts_and_no_queue():
  settings = SETTINGS | {"PRESET": "h100-8", "NAME": "second", "HOSTS": "2", "QUEUE": ""}
  done = generate(*ARGUMENTS, "--dry-run", **settings)
  jobset = yaml.safe_load(done.stdout)
  assert jobset["metadata"] == {"name": "second"}
  assert container_of(jobset)["args"][:2] == ["--config.mesh.data=2", "--config.mesh.fsdp=8"]
  assert initialize_arguments(environment(jobset, 1)) == {
    "coordinator_address": "second-hosts-0-0.second:12321",
    "num_processes": 2,
    "process_id": 1,
    "cluster_detection_method": "deactivate",
  }


@pytest.mark.parametrize("at", [0, 1, 2])
def test_kubectl_gets_what_dry_run_prints(tmp_path, at):
  kubectl = tmp_path / "kubectl"
  kubectl.write_text(f"#!/bin/sh\ncd '{tmp_path}'\necho $* >call\ncat >input\nexit 3\n")
  kubectl.chmod(0o755)
  settings = SETTINGS | {"PRESET": "v5e-256", "path": str(tmp_path)}
  shown = generate(*ARGUMENTS[:at], "--dry-run", *ARGUMENTS[at:], **settings)
  assert shown.returncode == 0 and not (tmp_path / "call").exists()
  assert generate(*ARGUMENTS, **settings).returncode == 3
  assert (tmp_path / "call").read_text() == "apply -f -\n"
  assert (tmp_path / "input").read_text() == shown.stdout


@pytest.mark.parametrize(
  "wrong",
  [
    *({"IMAGE": ""}, {"PRESET": ""}, {"PRESET": "v5e"}, {"PRESET": "#"}, {"HOSTS": "5"}),
    *({"HOSTS": "0"}, {"NAME": "Bad_Name"}, {"NAME": "9th"}, {"NAME": "a" * 41}, {"CLAIM": ""}),
  ],
)
def test_a_mistake_is_one_line(wrong):
  done = generate(*ARGUMENTS, "--dry-run", **(SETTINGS | {"PRESET": "v5e-16"} | wrong))
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert next(iter(wrong)) in done.stderr


def test_help_shows_how():
  done = generate("--help", **SETTINGS)
  assert done.returncode == 0 and "PRESET  a name of presets.txt" in done.stdout


@pytest.mark.parametrize("given", [["--workdir=gs://bucket/run"], ["--workdir", "s3://bucket/run"]])
def test_a_workdir_on_a_bucket_needs_no_volume(given):
  settings = {"PRESET": "v5e-16", "IMAGE": "registry/image:tag"}
  made = yaml.safe_load(generate("--dry-run", *given, **settings).stdout)
  pod = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
  assert [volume["name"] for volume in pod["volumes"]] == ["shm"]
  assert [mount["name"] for mount in pod["containers"][0]["volumeMounts"]] == ["shm"]
  refused = generate("--dry-run", "--workdir=/runs/run", **settings)
  assert refused.returncode == 2 and "set CLAIM" in refused.stderr


@pytest.mark.parametrize(
  "given",
  [
    [],
    ["--workdir=runs/run"],
    ["--workdir", "/home/run"],
    ["--workdir=/runs/../run"],
    ["--workdir=gs://bucket/run", "--workdir=run"],
    ["--workdir"],
  ],
)
def test_a_workdir_that_goes_with_its_pod_is_refused(given):
  done = generate("--dry-run", "--config=x", *given, **(SETTINGS | {"PRESET": "v5e-16"}))
  assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
  assert done.stderr.startswith("error: --workdir=") and "lost with its pod" in done.stderr


def test_without_kubectl_it_says_so(tmp_path):
  settings = SETTINGS | {"PRESET": "v5e-16", "PATH": str(tmp_path)}
  done = generate(*ARGUMENTS, **settings)
  assert (done.returncode, done.stderr) == (
    2,
    "error: kubectl is not installed, or not on the PATH\n",
  )
