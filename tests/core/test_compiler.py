"""XLA optimises less while a config asks for it, and as before afterwards."""

import jax
import jax.numpy as jnp
import pytest

from frozen_jax.core.compiler import most_optimizations_disabled

FLAG = "jax_disable_most_optimizations"


@pytest.mark.parametrize("disabled", [True, False])
def test_it_holds_within_and_not_after(disabled):
  with most_optimizations_disabled(disabled):
    assert jax.config.read(FLAG) is disabled
  assert not jax.config.read(FLAG)


def test_it_ends_with_an_error_too():
  with pytest.raises(ValueError, match="of the run"), most_optimizations_disabled():
    raise ValueError("of the run")
  assert not jax.config.read(FLAG)


def test_what_the_user_set_stays():
  jax.config.update(FLAG, True)
  try:
    with most_optimizations_disabled(False):
      assert jax.config.read(FLAG)
    assert jax.config.read(FLAG)
  finally:
    jax.config.update(FLAG, False)


def test_the_programs_compute_the_same():
  program = lambda x: jnp.tanh(x * 3.0 + 1.0).sum()
  x = jnp.linspace(-2.0, 2.0, 1000)
  plain = jax.jit(program)(x)
  with most_optimizations_disabled():
    quick = jax.jit(lambda x: program(x))(x)
  assert abs(plain - quick) <= 1e-5 * abs(plain)
