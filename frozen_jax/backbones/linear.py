"""The product with a frozen matrix, forwards and backwards; and that with a trained one.

Two things set the first apart from `x @ kernel`. The kernel is frozen, so its cotangent is never
computed. And bfloat16 operands accumulate in float32 in *both* directions: the backward product
narrows the cotangent to the kernel's type first, where differentiating a plain product would widen
the kernel instead and lose the fast path of the hardware (AMX, tensor cores, MXU). A quantised
kernel is made whole for each product, and again for the backward one: the residual is the codes.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from frozen_jax.backbones.quantized import Quantized, dense


def _contract(x: jax.Array, kernel: jax.Array, axis: int) -> jax.Array:
  """float32 product over the last axis of x and the given axis of the kernel."""
  dims = (((x.ndim - 1,), (axis,)), ((), ()))
  return jax.lax.dot_general(
    x.astype(kernel.dtype), kernel, dims, preferred_element_type=jnp.float32
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(
  x: Float[Array, "... I"], kernel: Float[Array, "I O"] | Quantized, axis: int = 0
) -> jax.Array:
  """x [..., I] times a frozen kernel -> float32 [..., O].

  `axis` is the kernel's axis that is summed over: 0 for a kernel [I, O], 1 for one stored [O, I]
  (an embedding table used as vocabulary projection). x is narrowed to the kernel's dtype, sums are
  float32. The gradient reaches x alone.
  """
  return _contract(x, dense(kernel), axis)


def _forward(x, kernel, axis):
  # An empty array carries x's dtype to the backward pass; x itself is not needed there.
  return _contract(x, dense(kernel), axis), (kernel, jnp.zeros((0,), x.dtype))


def _backward(axis, residuals, cotangent):
  kernel, like = residuals
  return _contract(cotangent, dense(kernel), 1 - axis).astype(like.dtype), None


project.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Float[Array, "... I"], kernel: Float[Array, "I O"], axis: int = 0) -> jax.Array:
  """`project` for a kernel that is itself trained: the gradient reaches it too."""
  return _contract(x, kernel, axis)


def _product_forward(x, kernel, axis):
  # x is kept as it is multiplied; an empty array carries its dtype to the backward pass.
  return _contract(x, kernel, axis), (x.astype(kernel.dtype), kernel, jnp.zeros((0,), x.dtype))


def _product_backward(axis, residuals, cotangent):
  x, kernel, like = residuals
  back = _contract(cotangent, kernel, 1 - axis).astype(like.dtype)
  first, second = (x, cotangent) if axis == 0 else (cotangent, x)
  slope = _contract(
    _turned(first.astype(kernel.dtype)),
    second.astype(kernel.dtype).reshape(-1, second.shape[-1]),
    0,
  )
  return back, slope.astype(kernel.dtype)


def _turned(x: Float[Array, "... I"]) -> Float[Array, "I N"]:
  """Rows as columns, through two axes: a transpose that ends in a reshape.

  Behind a bare transpose XLA's CPU backend would widen both operands of a product to float32. The
  axes are x's own where it has two: dividing them otherwise costs ten times the transpose.
  """
  if x.dtype != jnp.bfloat16 or x.ndim < 2:
    return x.reshape(-1, x.shape[-1]).T
  *_, count, width = x.shape
  if x.size == count * width and count % 2 == 0:
    count //= 2
  return x.reshape(-1, count, width).transpose(2, 0, 1).reshape(width, -1)


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def project_groups(
  x: Float[Array, "N I"], kernels: Float[Array, "E I O"] | Quantized, sizes: Int[Array, "E"]
) -> Float[Array, "N O"]:
  """Rows of x, sorted by group, each times its group's frozen kernel -> float32 [N, O].

  `sizes` says how many rows each of the E groups has; they sum to N. The gradient reaches x alone.
  """
  return _contract_groups(x, dense(kernels), sizes)


def _contract_groups(x: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
  return jax.lax.ragged_dot(
    x.astype(kernels.dtype), kernels, sizes, preferred_element_type=jnp.float32
  )


def _groups_forward(x, kernels, sizes):
  return _contract_groups(x, dense(kernels), sizes), (kernels, sizes, jnp.zeros((0,), x.dtype))


def _groups_backward(residuals, cotangent):
  kernels, sizes, like = residuals
  back = dense(kernels).swapaxes(1, 2)
  return _contract_groups(cotangent, back, sizes).astype(like.dtype), None, None


project_groups.defvjp(_groups_forward, _groups_backward)
