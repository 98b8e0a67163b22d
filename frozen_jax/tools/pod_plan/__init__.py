"""Plans a run on a TPU pod without one: `python -m frozen_jax.tools.pod_plan --help`."""
