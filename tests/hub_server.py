"""A server in the place of the Hugging Face hub, for its real client."""

import base64
import contextlib
import http.server
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import threading

from tests import fork_server
from tests.processes import HANGS_AFTER, ROOT, Process, environment

COMMIT = "a1" * 20


class Hub(http.server.BaseHTTPRequestHandler):
  """What the client asks of the hub, for one model, `owner/name`, of the folder `files`.

  With a token it may be made, and files be added to it or removed.
  """

  files: pathlib.Path
  asked: list[tuple[str, str, str | None, str | None]]
  made: list[dict]  # what was asked for in repositories that were made

  def do_HEAD(self):
    self.do_GET(body=False)

  def do_GET(self, body=True):
    status, headers, data = self.answer()
    given = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
    if given and status == 200:
      status, data = 206, data[int(given[1]) : int(given[2] or len(data)) + 1]
    self.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(data))}.items():
      self.send_header(name, value)
    self.end_headers()
    if body:
      self.wfile.write(data)
    told = [self.headers.get(name) for name in ("Authorization", "Range")]
    self.asked.append((self.command, self.path, *told))

  def do_POST(self):
    data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    status, about = self.changed(self.path.partition("?")[0], data)
    told = json.dumps(about).encode()
    self.send_response(status)
    self.send_header("Content-Length", str(len(told)))
    self.send_header("Content-Type", "application/json")
    self.end_headers()
    self.wfile.write(told)
    self.asked.append((self.command, self.path, self.headers.get("Authorization"), None))

  def changed(self, path, data):
    if not self.headers.get("Authorization"):
      return 401, {"error": "Invalid username or password."}
    if path == "/api/validate-yaml":
      return 200, {"errors": [], "warnings": []}
    if path == "/api/repos/create":
      self.made.append(json.loads(data))
      return 200, {"url": f"http://{self.headers['Host']}/owner/name", "name": "owner/name"}
    if path == "/api/models/owner/name/preupload/main":
      names = [file["path"] for file in json.loads(data)["files"]]
      modes = {"uploadMode": "regular", "shouldIgnore": False}
      return 200, {"files": [{"path": name, **modes} for name in names]}
    if path == "/api/models/owner/name/commit/main":
      for change in map(json.loads, data.splitlines()):
        value = change["value"]
        if change["key"] == "file":
          (self.files / value["path"]).write_bytes(base64.b64decode(value["content"]))
        elif change["key"] == "deletedFile":
          (self.files / value["path"]).unlink()
      address = f"http://{self.headers['Host']}/owner/name/commit/{COMMIT}"
      return 200, {"success": True, "commitUrl": address, "commitOid": COMMIT}
    return 404, {"error": "Repository not found"}

  def answer(self):
    path = self.path.partition("?")[0]
    there = {file.name: file for file in self.files.iterdir()}
    if path.startswith("/api/models/owner/gated") or "owner/gated" in path:
      return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"}, b""
    if not path.removeprefix("/api/models").startswith("/owner/name/"):
      return 404, {"X-Error-Code": "RepoNotFound"}, b""
    if "/resolve/" in path:
      if path.rpartition("/")[2] not in there:
        return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
      file = there[path.rpartition("/")[2]]
      return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{file.name}"'}, file.read_bytes()
    if "/tree/" in path:
      entries = [
        {"type": "file", "path": name, "size": file.stat().st_size, "oid": name}
        for name, file in there.items()
      ]
      return 200, {}, json.dumps(entries).encode()
    if path.endswith(("/revision/main", "/revision/v1", f"/revision/{COMMIT}")):
      siblings = [{"rfilename": name} for name in there]
      about = {"id": "owner/name", "sha": COMMIT, "siblings": siblings}
      return 200, {}, json.dumps(about).encode()
    return 404, {"X-Error-Code": "RevisionNotFound"}, b""

  def log_message(self, *given):
    pass


@contextlib.contextmanager
def serving(files, home):
  """`run(*arguments, **variables)`: Python's status and outputs; `run.asked`, `run.made`.

  files: the folder of the model. home: of the client's cache.
  """
  asked, made = [], []
  handler = type("OneHub", (Hub,), {"files": files, "asked": asked, "made": made})
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()

  def run(*arguments, anew=False, **variables):
    """In its own process; anew: in an interpreter that has yet to import everything."""
    kept = {k: v for k, v in environment().items() if not k.startswith(("HF_", "HUGGING"))}
    own = {"HF_HOME": str(home), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    own = kept | own | variables
    given = list(map(str, arguments))
    if anew:
      done = subprocess.run(
        [sys.executable, *given], cwd=ROOT, env=own, capture_output=True, text=True, check=False
      )
      return done.returncode, done.stdout, done.stderr
    process = Process(["-m", "tests.hub_server", *given], ROOT, own)
    out, err = process.communicate(timeout=HANGS_AFTER)
    return process.returncode, out, err

  run.asked, run.made = asked, made
  try:
    yield run
  finally:
    server.shutdown()


def _forget_the_client():
  """It reads the environment when it is imported, which was another one."""
  for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
    del sys.modules[name]
  logging.getLogger("huggingface_hub").handlers.clear()


if __name__ == "__main__":  # in a forked process: what `python ARGUMENTS` does
  _forget_the_client()
  fork_server.run(fork_server.Request(sys.argv[1:], os.getcwd(), dict(os.environ)))
