"""Object stores of this machine: gcp-storage-emulator for `gs://`, moto for `s3://`.

They run in threads of this process; the processes that tests start reach them by the variables that
`Store.variables` has.
"""

import contextlib
import email.parser
import http
import os

BUCKET = "runs"
SCHEMES = ("gs", "s3")


class Store:
  """One store. `url`: its bucket; `variables`: of the environment, by which it is reached."""

  def __init__(self, scheme, variables):
    self.scheme, self.variables = scheme, variables
    self.url = f"{scheme}://{BUCKET}"


def _only_where_absent(insert):
  """The emulator's handler of uploads, with the one condition that locks need and it lacks."""
  from gcp_storage_emulator.exceptions import NotFound

  def handle(request, response, storage, *arguments, **options):
    if request.query.get("ifGenerationMatch") == ["0"]:
      name = (request.query.get("name") or [None])[0] or request.data["meta"]["name"]
      with contextlib.suppress(NotFound):
        storage.get_file_obj(request.params["bucket_name"], name)
        response.status = http.HTTPStatus.PRECONDITION_FAILED
        return None
    return insert(request, response, storage, *arguments, **options)

  return handle


class _UploadParser(email.parser.BytesParser):
  """Of an upload's parts. gcsfs ends a part by LF; a last CR of the file, one byte in 256, would be
  taken for the first half of the end of the line.
  """

  def parsebytes(self, text, headersonly=False):
    content, boundary, rest = text.rpartition(b"\n--")
    return super().parsebytes(content + b"\r" + boundary + rest, headersonly)


@contextlib.contextmanager
def _gs():
  from gcp_storage_emulator import server
  from gcp_storage_emulator.handlers import objects

  for _, handlers in server.HANDLERS:
    if handlers.get(server.POST) is objects.insert:
      handlers[server.POST] = _only_where_absent(objects.insert)
  server.BytesParser = _UploadParser
  running = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
  running.start()
  running._api._httpd.handle_error = lambda *_: None  # clients that hang up early
  try:
    port = running._api._httpd.server_address[1]
    yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
  finally:
    running.stop()


@contextlib.contextmanager
def _s3():
  import boto3
  from moto.server import ThreadedMotoServer

  running = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
  running.start()
  try:
    host, port = running.get_host_and_port()
    variables = {
      "AWS_ENDPOINT_URL": f"http://{host}:{port}",
      "AWS_ACCESS_KEY_ID": "tests",
      "AWS_SECRET_ACCESS_KEY": "tests",
      "AWS_DEFAULT_REGION": "us-east-1",
    }
    with environment(variables):
      boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield variables
  finally:
    running.stop()


@contextlib.contextmanager
def environment(variables):
  """These variables for this process too."""
  before = {name: os.environ.get(name) for name in variables}
  os.environ.update(variables)
  try:
    yield
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value


@contextlib.contextmanager
def store(scheme):
  """A running store with an empty bucket, which this process reaches too."""
  from frozen_jax.core import object_store

  with {"gs": _gs, "s3": _s3}[scheme]() as variables, environment(variables):
    object_store._file_system.cache_clear()
    yield Store(scheme, variables)
  object_store._file_system.cache_clear()
