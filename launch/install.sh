#!/usr/bin/env bash
# Installs the clone that this file is in, with an extra of setup.py, into .venv beside it. Brings
# its own Python: that of TPU VMs is too old. Run again, it changes what has changed.
#
#   launch/install.sh tpu|cuda[,gcs][,s3]
set -euo pipefail
if [[ $# != 1 || ! $1 =~ ^(tpu|cuda)(,gcs|,s3)*$ ]]; then
  echo "error: usage: $0 tpu|cuda[,gcs][,s3]" >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PATH="$HOME/.local/bin:$PATH"
if ! command -v uv >/dev/null; then
  curl --location --silent --show-error --fail https://astral.sh/uv/install.sh | sh
fi
uv venv --quiet --python 3.12 --allow-existing .venv
uv pip install --quiet --python .venv/bin/python -e ".[$1]"
