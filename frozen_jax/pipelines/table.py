"""The pipelines, by the section of a config that asks for each, in the order in which they act.

A further pipeline is a folder and a line here.
"""

from frozen_jax.pipelines.pipeline import Pipeline
from frozen_jax.pipelines.propose_select.pipeline import ProposeSelect
from frozen_jax.pipelines.retrieve_read.pipeline import RetrieveRead

PIPELINES: dict[str, type[Pipeline]] = {"reader": RetrieveRead, "candidates": ProposeSelect}
