"""tpu_pod.sh with a preset: what it asks of gcloud and does on the hosts, over a slice's life."""

import pathlib
import shlex
import shutil
import subprocess
import time

import pytest

from tests.launch.presets import LAUNCH
from tests.launch.stand_in_gcloud import ARGUMENTS, MESH, Cloud, step_of
from tests.processes import HANGS_AFTER

pytestmark = pytest.mark.skipif(shutil.which("flock") is None, reason="the hosts run Linux")

WHOLE = ["status", "scp", "install.sh", "start", "follow", "status"]


@pytest.fixture
def cloud(tmp_path):
  return Cloud(tmp_path)


def test_it_asks_for_the_slice_waits_copies_installs_runs_and_follows(cloud):
  cloud.has(states="ABSENT WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
  done = cloud.run(*ARGUMENTS, CREATE_FLAGS="--spot --network=net")
  assert done.returncode == 0, done.stderr
  assert cloud.steps() == ["create", *WHOLE]
  assert "PROVISIONING" in done.stderr
  create = cloud.calls()[0]
  assert create[2:] == [
    "pod",
    "--zone=zone",
    "--node-id=pod",
    "--accelerator-type=v5litepod-16",
    "--runtime-version=v2-alpha-tpuv5-lite",
    "--spot",
    "--network=net",
  ]
  for host in ("host0", "host1"):
    (run,) = cloud.runs(host)
    folder = str(cloud.folder / host / "frozen_jax")
    assert run == [["-m", "frozen_jax.main", *MESH, *ARGUMENTS], "auto", folder]
    assert f"uv {host} {folder} pip install" in (cloud.folder / "uv").read_text()
  assert "host0 runs" in done.stdout and "host1 runs" not in done.stdout


@pytest.mark.parametrize("given", ["a clone", "~/a clone"])
def test_the_folder_of_the_clone_is_one_of_the_hosts_home_folder(cloud, given):
  done = cloud.run(*ARGUMENTS, FOLDER=given)
  assert done.returncode == 0, done.stderr
  for host in ("host0", "host1"):
    (run,) = cloud.runs(host)
    assert run[-1] == str(cloud.folder / host / "a clone")


@pytest.mark.parametrize("given", ["~/", "~", "~bob/clone"])
def test_a_folder_that_is_none_in_a_home_folder_is_refused(cloud, given):
  done = cloud.run(*ARGUMENTS, FOLDER=given)
  assert done.returncode == 2 and not cloud.calls()
  assert f"error: FOLDER={given}: give a path in the home folder" in done.stderr


def test_every_call_says_where(cloud):
  cloud.run(*ARGUMENTS, "--delete")
  for call in cloud.calls():
    assert "--zone=zone" in call
  workers = {step_of(c): c[-2] for c in cloud.calls() if c[1] == "ssh"}
  assert workers["install.sh"] == workers["start"] == "--worker=all"
  assert workers["status"] == workers["follow"] == "--worker=0"


def test_a_slice_that_is_there_is_used_again(cloud):
  cloud.has(states="ACTIVE", hosts=True)
  for attempt in (1, 2):  # the second time there is a run that has ended
    assert cloud.run(*ARGUMENTS).returncode == 0
    assert cloud.steps() == WHOLE * attempt
    assert len(cloud.runs("host1")) == attempt


def test_changes_that_are_not_committed_are_copied_and_the_clone_is_left_alone(cloud):
  cloud.has(states="ACTIVE", hosts=True)
  file = pathlib.Path("launch", "presets.txt")
  with (cloud.clone / file).open("a") as presets:
    presets.write("# new\n")
  status = ["git", "-C", str(cloud.clone), "status", "--porcelain"]
  before = subprocess.check_output(status)
  assert cloud.run(*ARGUMENTS).returncode == 0
  assert (cloud.folder / "host1" / "frozen_jax" / file).read_text().endswith("# new\n")
  assert subprocess.check_output(status) == before != b""


@pytest.mark.parametrize("end", [1, 2, 137])
def test_the_exit_status_is_that_of_the_run(cloud, end):
  cloud.has(runs=str(end))
  assert cloud.run(*ARGUMENTS).returncode == end
  assert len(cloud.runs("host0")) == 1


@pytest.mark.parametrize(  # 0: it has saved upon SIGTERM; 1: it was cut off
  "end, looks, steps",
  [
    (0, "ACTIVE ACTIVE SUSPENDED SUSPENDED ABSENT ACTIVE", ["delete", "create"]),
    (1, "ACTIVE ACTIVE SUSPENDING SUSPENDED ABSENT ACTIVE", ["delete", "create"]),
    (0, "ACTIVE ACTIVE FAILED FAILED DELETING ABSENT ACTIVE", ["delete", "create"]),
    (1, "ACTIVE ACTIVE ABSENT ABSENT ACTIVE", ["create"]),
  ],
)
def test_after_preemption_another_slice_is_asked_for_and_the_run_goes_on(cloud, end, looks, steps):
  cloud.has(states=looks, hosts=True, runs=f"{end} 0")
  done = cloud.run(*ARGUMENTS)
  assert done.returncode == 0, done.stderr
  assert cloud.steps() == [*WHOLE, *steps, *WHOLE]
  assert [len(cloud.runs(host)) for host in ("host0", "host1")] == [2, 2]
  assert "was taken away" in done.stderr


def test_preemption_that_shows_before_the_hosts_are_asked(cloud):
  cloud.has(states="ACTIVE SUSPENDED ABSENT ACTIVE", hosts=True, runs="1 0")
  assert cloud.run(*ARGUMENTS).returncode == 0
  assert cloud.steps() == [*WHOLE[:-1], "delete", "create", *WHOLE]


def test_a_run_that_goes_on_is_followed_and_not_started_again(cloud):
  cloud.has(states="ACTIVE", hosts=True)
  host = cloud.folder / "host0" / "frozen_jax"
  shutil.copytree(cloud.clone / "launch", host / "launch")
  detached = ["bash", "launch/detached.sh", "start"]
  subprocess.run([*detached, "bash", "-c", "echo before; sleep 2"], cwd=host, check=True)
  done = cloud.run(*ARGUMENTS)
  assert (done.returncode, done.stdout) == (0, "before\n"), done.stderr
  assert cloud.steps() == ["status", "follow", "status"]
  assert not cloud.runs("host0")


def test_a_run_outlives_what_started_it_and_is_started_once(tmp_path):
  script = LAUNCH / "detached.sh"
  host = lambda *verb: subprocess.run(
    ["bash", script, *verb], cwd=tmp_path, capture_output=True, text=True, timeout=HANGS_AFTER
  )
  assert host("status").stdout == "none\n"
  started = time.monotonic()
  host("start", "bash", "-c", "sleep 3; exit 7")
  assert time.monotonic() - started < 2.5, "it waited for the command"
  assert "already" in host("start", "touch", "twice").stderr
  assert host("status").stdout == "running\n"
  host("follow")
  assert host("status").stdout == "ended 7\n"
  assert not (tmp_path / "twice").exists()


def test_stop_sends_sigterm_to_the_run_on_every_host(cloud):
  hosts = [cloud.folder / name / "frozen_jax" for name in ("host0", "host1")]
  saves = "trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
  for host in hosts:
    shutil.copytree(cloud.clone / "launch", host / "launch")
    subprocess.run(
      ["bash", "launch/detached.sh", "start", "bash", "-c", saves], cwd=host, check=True
    )
  until = time.monotonic() + 30
  while any((host / ".run" / "log").read_text() != "ready\n" for host in hosts):
    assert time.monotonic() < until
    time.sleep(0.05)
  for _ in range(2):  # the second time there is none
    assert cloud.run("--stop", *ARGUMENTS).returncode == 0
    for host in hosts:
      subprocess.run(["bash", "launch/detached.sh", "follow"], cwd=host, stdout=subprocess.DEVNULL)
      assert (host / ".run" / "log").read_text() == "ready\nsaved\n"
      assert (host / ".run" / "status").read_text() == "0\n"
  assert cloud.steps() == ["stop", "stop"]


def test_lost_connections_are_tried_again(cloud):
  cloud.has(states="ACTIVE", hosts=True, lost="3")
  done = cloud.run(*ARGUMENTS)
  assert done.returncode == 0, done.stderr
  assert cloud.steps() == ["status"] * 3 + WHOLE


def test_hosts_that_never_answer_are_given_up(cloud):
  cloud.has(states="ACTIVE", hosts=True, lost="1000")
  done = cloud.run(*ARGUMENTS, "--delete")
  assert done.returncode == 1 and "delete" not in cloud.steps(), "the run may go on"
  assert done.stderr.splitlines()[-1].startswith("error: pod did not answer")


def test_a_host_that_restarts_during_the_run_gets_the_run_again(cloud):
  cloud.has(states="ACTIVE", hosts=True, runs="down 0")
  done = cloud.run(*ARGUMENTS)
  assert done.returncode == 0, done.stderr
  assert cloud.steps() == WHOLE + WHOLE[1:] and len(cloud.runs("host1")) == 2


def test_looks_that_fail_are_repeated(cloud):
  cloud.has(states="BROKEN ABSENT BROKEN ACTIVE")
  done = cloud.run(*ARGUMENTS)
  assert done.returncode == 0, done.stderr
  assert "no network" in done.stderr and cloud.steps() == ["create", *WHOLE]


def test_looks_that_always_fail_come_to_an_end(cloud):
  cloud.has(states="BROKEN")
  done = cloud.run(*ARGUMENTS)
  assert done.returncode == 1 and not cloud.steps()
  assert done.stderr.splitlines()[-1].startswith("error: gcloud could not say what became of pod")


@pytest.mark.parametrize("given", [{"TPU_NAME": "p/x"}, {"TPU_NAME": "Pod"}, {"ZONE": "a zone"}])
def test_names_that_gcloud_would_refuse(cloud, given):
  done = cloud.run("--dry-run", *ARGUMENTS, **given)
  (name,) = given
  assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
  assert done.stderr.startswith(f"error: {name}={given[name]} must be small letters")


def test_without_gcloud_it_says_so(cloud, tmp_path):
  for tool in ("bash", "dirname"):
    (tmp_path / tool).symlink_to(shutil.which(tool))
  done = cloud.run(*ARGUMENTS, PATH=str(tmp_path))
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  assert done.stderr.startswith("error: gcloud is not installed")


@pytest.mark.parametrize("given", [[], ["begin"]])
def test_another_verb_on_a_host_is_one_line(tmp_path, given):
  command = ["bash", str(LAUNCH / "detached.sh"), *given]
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())
  assert done.stderr.startswith("error: ") and "none of start, status" in done.stderr


def test_a_request_that_fails_is_an_error_and_not_repeated(cloud):
  cloud.has(states="ABSENT FAILED")
  done = cloud.run(*ARGUMENTS)
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith("error: the request for pod failed")
  assert cloud.steps() == ["create"]


def test_delete_alone_deletes_and_after_a_run_in_the_end(cloud):
  cloud.has(states="ACTIVE", hosts=True, runs="1")
  assert cloud.run(*ARGUMENTS[:1], "--delete", *ARGUMENTS[1:]).returncode == 1
  assert cloud.steps() == [*WHOLE, "delete"]
  (cloud.folder / "calls").unlink()
  assert cloud.run("--delete").returncode == 0
  flags = ["pod", "--zone=zone", "--force", "--quiet"]
  assert cloud.calls() == [["queued-resources", "delete", *flags]]


def test_what_was_to_be_deleted_is_deleted_where_the_run_cannot_start(cloud):
  (cloud.bin / "uv").write_text("#!/bin/sh\nexit 1\n")
  done = cloud.run(*ARGUMENTS, "--delete")
  assert done.returncode == 1 and "could not install and start on pod" in done.stderr
  assert cloud.steps() == ["create", "status", "scp", "install.sh", "delete"]


CONFIG, WORKDIR = ARGUMENTS[0], ARGUMENTS[-1]


@pytest.mark.parametrize(
  "arguments, variables, said",
  [
    ([], {}, "give --config="),
    ([WORKDIR], {}, "give --config="),
    ([CONFIG], {}, "--workdir= would be on the disk of each host"),
    ([CONFIG, WORKDIR, "--workdir", "runs/x"], {}, "--workdir=runs/x would be"),
    ([CONFIG, "--workdir=gs:/bucket/run"], {}, "--workdir=gs:/bucket/run would be"),
    (ARGUMENTS, {"POLL_SECONDS": "abc"}, "POLL_SECONDS=abc is no number"),
  ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]], ids=str)
def test_what_would_fail_on_the_slice_is_said_before_one_is_asked_for(
  cloud, arguments, variables, said, dry_run
):
  done = cloud.run(*arguments, *dry_run, **variables)
  assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
  assert done.stderr.startswith(f"error: {said}") and not cloud.calls()


def test_a_folder_without_git_is_refused_before_a_slice_is_asked_for(cloud):
  shutil.rmtree(cloud.clone / ".git")
  done = cloud.run(*ARGUMENTS, GIT_CEILING_DIRECTORIES=str(cloud.folder))
  assert done.returncode == 2 and "is no git clone" in done.stderr and not cloud.calls()


def test_help_shows_how_and_does_nothing(cloud):
  done = cloud.run("--help")
  assert (done.returncode, done.stderr) == (0, "") and not cloud.calls()
  assert (
    done.stdout.startswith("Runs frozen_jax.main on every host") and "set -e" not in done.stdout
  )


@pytest.mark.parametrize("given", [[], ["gpu"], ["--help"], ["tpu", "cuda"], ["gcs"]], ids=str)
def test_another_extra_than_those_for_accelerators_and_stores_is_not_installed(cloud, given):
  done = cloud.install(*given)
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  assert not (cloud.folder / "uv").exists()


@pytest.mark.parametrize("extra", ["tpu", "cuda,gcs", "cuda,s3", "tpu,gcs,s3"])
def test_an_extra_is_installed(cloud, extra):
  assert cloud.install(extra).returncode == 0
  assert (cloud.folder / "uv").read_text().endswith(f"-e .[{extra}]\n")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_dry_run_prints_every_step_and_does_none(cloud, at):
  done = cloud.run(*ARGUMENTS[:at], "--dry-run", *ARGUMENTS[at:], "--delete")
  assert (done.returncode, done.stderr) == (0, "")
  shown = [shlex.split(line) for line in done.stdout.splitlines()]
  steps = [step_of(line[3:]) for line in shown if line[0] == "gcloud"]
  assert steps == ["create", "scp", "install.sh", "start", "follow", "delete"]
  start = next(line for line in shown if "detached.sh start" in line[-1])
  assert shlex.split(start[-1])[-5 - len(MESH) :] == ["-m", "frozen_jax.main", *MESH, *ARGUMENTS]
  assert not cloud.calls() and not list(cloud.folder.glob("host*"))


@pytest.mark.parametrize("preset", ["v5e", "v5e.16", "h100-8", "#"])
def test_a_preset_that_is_no_tpu_is_an_error(cloud, preset):
  done = cloud.run(*ARGUMENTS, PRESET=preset)
  assert done.returncode == 2 and not cloud.calls()
  assert done.stderr.startswith(f"error: PRESET={preset}") and done.stderr.count("\n") == 1
