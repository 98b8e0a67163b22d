"""The container file: stages, no root, and extras that exist. Building it needs an engine."""

import re
import subprocess
import sys

from tests.launch.presets import LAUNCH, ROOT

TEXT = (LAUNCH / "Containerfile").read_text()
STEPS = [line.split(maxsplit=1) for line in re.sub(r"\\\n", " ", TEXT).splitlines() if line]
STEPS = [step for step in STEPS if not step[0].startswith("#")]


def last_stage():
  start = max(index for index, (name, _) in enumerate(STEPS) if name == "FROM")
  return STEPS[start:]


def test_what_runs_is_a_stage_of_its_own_and_not_root():
  stages = [rest for name, rest in STEPS if name == "FROM"]
  assert len(stages) > 2 and " AS " not in stages[-1]
  final = last_stage()
  (copied,) = [rest for name, rest in final if name == "COPY"]
  assert copied.startswith("--from=")
  user = [index for index, (name, _) in enumerate(final) if name == "USER"]
  assert len(user) == 1 and final[user[0]][1] not in ("0", "root")
  assert not {"RUN", "COPY", "ADD"} & {name for name, _ in final[user[0] :]}
  made = next(rest for name, rest in final if name == "RUN")
  assert f"--uid {final[user[0]][1]} " in made


def test_what_is_copied_in_exists_and_every_extra_is_one():
  for name, rest in STEPS:
    if name == "COPY" and not rest.startswith("--from"):
      assert [path for path in rest.split()[:-1] if not (ROOT / path).exists()] == []
  extras = re.search(r"by the extra of setup.py: (.+), or none", TEXT)[1].split(", ")
  code = "import setuptools; setuptools.setup = lambda **of: print(*of['extras_require'])"
  command = [sys.executable, "-c", f"{code}; import runpy; runpy.run_path('setup.py')"]
  known = subprocess.check_output(command, cwd=ROOT, text=True).split()
  assert extras == ["tpu", "cuda"] and set(extras) <= set(known)
