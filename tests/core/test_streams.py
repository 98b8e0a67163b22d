"""Programs whose output nobody reads any more, that write to a full disk, or whose streams are
closed or of an encoding that lacks characters.
"""

import json
import subprocess
import sys

import pytest

from tests.processes import environment

PROGRAM = """
import sys
from frozen_jax.core.errors import exit_status
from frozen_jax.core.streams import own_streams
if "own" in sys.argv:
  own_streams()
def work():
  print("ready", flush=True)
  sys.stdin.readline()
  for line in range(5000):
    print("a line of output", line)
    print("progress", file=sys.stderr, end="\\r")
  if "done" in sys.argv:
    open(sys.argv[-1], "w").close()
sys.exit(exit_status(work))
"""


@pytest.mark.parametrize("own", ["own", "plain"])
def test_a_reader_that_goes_away_ends_nothing_and_nothing_is_said(tmp_path, own):
  process = subprocess.Popen(
    [sys.executable, "-c", PROGRAM, own, "done", str(tmp_path / "done")],
    env=environment(),
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  process.stdout.close()
  process.stdin.write("go\n")
  process.stdin.close()
  err = process.stderr.read()
  assert process.wait() == 0
  assert err.replace("progress", "").strip() == ""
  assert (tmp_path / "done").exists() == (own == "own"), "our own streams let the work go on"


def run(stdout, stderr):
  with open(stdout, "w") as out, open(stderr, "w") as err:
    command = [sys.executable, "-c", PROGRAM, "own"]
    return subprocess.run(command, env=environment(), input=b"\n", stdout=out, stderr=err)


def test_standard_output_on_a_full_disk_is_an_error_in_one_line(tmp_path):
  assert run("/dev/full", tmp_path / "err").returncode == 2
  said = (tmp_path / "err").read_text().replace("progress\r", "")
  assert said.startswith("error: cannot write") and "No space left on device" in said
  assert said.count("\n") == 1


def test_a_log_on_a_full_disk_ends_nothing(tmp_path):
  assert run(tmp_path / "out", "/dev/full").returncode == 0
  assert len((tmp_path / "out").read_text().splitlines()) == 5001


ANSWERS = """
import json, sys
from frozen_jax.core.errors import UserError, exit_status
from frozen_jax.core.streams import is_unicode, own_streams
from frozen_jax.core.text_file import standard_input_lines
if "own" in sys.argv:
  own_streams()
def work():
  questions = list(standard_input_lines())
  written = open(sys.argv[-1], "w")
  print(json.dumps({"prediction": "é 東 🙂"}, ensure_ascii=not is_unicode(sys.stdout)))
  print("é 東 🙂", "\\ud83d")
  print("é 東 🙂 \\ud83d", file=sys.stderr)
  written.write("whole")
  written.close()
  if not questions:
    raise UserError("no question, é 東")
sys.exit(exit_status(work))
"""


def answers(tmp_path, own, redirections="", given="What?\n", **variables):
  """The finished program, run by a shell; what it wrote to its file is whole."""
  command = f'"$0" "$@" {redirections}'
  file = tmp_path / "file"
  done = subprocess.run(
    ["sh", "-c", command, sys.executable, "-c", ANSWERS, own, str(file)],
    env=environment(**variables),
    input=given.encode(),
    capture_output=True,
  )
  assert file.read_text() == "whole"
  return done


@pytest.mark.parametrize(
  "own, redirections, status",
  [
    ("own", ">&-", 0),
    ("own", "2>&-", 0),
    ("own", ">&- 2>&-", 0),
    ("own", "<&-", 2),
    ("own", "<&- >&- 2>&-", 2),
    ("own", "1</dev/null", 0),
    ("own", "2</dev/null >&-", 0),
    ("own", "0>/dev/null", 2),
    ("plain", ">&-", 0),
    ("plain", "<&- 2>&-", 2),
  ],
)
def test_a_closed_stream_ends_nothing(tmp_path, redirections, status, own):
  done = answers(tmp_path, own, redirections)
  assert done.returncode == status
  assert b"Traceback" not in done.stderr and b"Error" not in done.stderr
  if status and "2>" not in redirections:
    assert done.stderr.decode().splitlines()[-1].startswith("error: no question")


@pytest.mark.parametrize(
  "own, encoding",
  [("own", "ascii"), ("own", "cp1252"), ("own", "utf-8"), ("plain", "latin-1")],
)
def test_what_an_encoding_lacks_is_escaped(tmp_path, encoding, own):
  done = answers(tmp_path, own, PYTHONIOENCODING=encoding, given="")
  assert done.returncode == 2
  row, text = done.stdout.decode(encoding).splitlines()
  assert json.loads(row)["prediction"] == "é 東 🙂"
  kept = "é 東 🙂 \\ud83d".encode(encoding, "backslashreplace").decode(encoding)
  assert text == kept
  assert done.stderr.decode(encoding).splitlines()[-1].startswith("error: no question")


@pytest.mark.program
@pytest.mark.parametrize("streams", [">&- <&-", "2>&-"])
def test_the_command_and_the_tools_bear_closed_streams(tmp_path, streams):
  commands = ("frozen_jax --version", "frozen_jax.tools.compare nowhere")
  for command, status in zip(commands, (0, 2), strict=True):
    done = subprocess.run(
      f"{sys.executable} -m {command} {streams}",
      shell=True,
      env=environment(),
      cwd=tmp_path,
      capture_output=True,
      text=True,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
