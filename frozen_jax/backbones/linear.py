"""The product with a frozen matrix and its derivative; and the product with a trained one.

The first differs from `x @ kernel` in two ways. The kernel is frozen, so its cotangent is never
computed. And bfloat16 operands accumulate in float32 in *both* directions: the backward product
casts the cotangent to the kernel's dtype first, where differentiating a plain product would widen
the kernel instead and lose the fast path of the hardware (AMX, tensor cores, MXU). A quantised
kernel is dequantised for each product, and again in the backward pass: the residual is the codes.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from frozen_jax.backbones.quantized import Quantized, dequantize
from frozen_jax.core.types import HostOrDevice


def _contract(
  x: Float[HostOrDevice, "..."], kernel: Float[Array, "..."], axis: int
) -> Float[Array, "..."]:
  """float32 product over the last axis of x and the given axis of the kernel."""
  dims = (((x.ndim - 1,), (axis,)), ((), ()))
  return jax.lax.dot_general(
    x.astype(kernel.dtype), kernel, dims, preferred_element_type=jnp.float32
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(
  x: Float[HostOrDevice, "*N in"],
  kernel: Float[Array, "in out"] | Float[Array, "out in"] | Quantized,
  axis: int = 0,
) -> Float[Array, "*N out"]:
  """x times a frozen kernel, float32.

  `axis` is the kernel's axis that is summed over: 0 for a kernel [in, out], 1 for one stored
  [out, in] (an embedding table used as LM head). x is cast to the kernel's dtype, sums are float32.
  Only x gets a gradient.
  """
  return _contract(x, dequantize(kernel), axis)


def _forward(x, kernel, axis):
  # An empty array carries x's dtype to the backward pass; x itself is not needed there.
  return _contract(x, dequantize(kernel), axis), (kernel, jnp.zeros((0,), x.dtype))


def _backward(axis, residuals, cotangent):
  kernel, like_x = residuals
  return _contract(cotangent, dequantize(kernel), 1 - axis).astype(like_x.dtype), None


project.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project_trained(
  x: Float[HostOrDevice, "*N in"],
  kernel: Float[HostOrDevice, "in out"] | Float[HostOrDevice, "out in"],
  axis: int = 0,
) -> Float[Array, "*N out"]:
  """`project` with a kernel that is itself trained: it gets a gradient, too."""
  return _contract(x, kernel, axis)


def _trained_forward(x, kernel, axis):
  # x is saved in the dtype of the product; an empty array carries its own to the backward pass.
  return _contract(x, kernel, axis), (x.astype(kernel.dtype), kernel, jnp.zeros((0,), x.dtype))


def _trained_backward(axis, residuals, cotangent):
  x, kernel, like_x = residuals
  d_x = _contract(cotangent, kernel, 1 - axis).astype(like_x.dtype)
  first, second = (x, cotangent) if axis == 0 else (cotangent, x)
  d_kernel = _contract(
    _transposed(first.astype(kernel.dtype)),
    second.astype(kernel.dtype).reshape(-1, second.shape[-1]),
    0,
  )
  return d_x, d_kernel.astype(kernel.dtype)


def _transposed(x: Float[Array, "... in"]) -> Float[Array, "in N"]:
  """Rows as columns, through three axes: a transpose that ends in a reshape.

  After a bare transpose XLA's CPU backend would widen both operands of a product to float32. If x
  has three axes or more, the last two stay: splitting other ones takes ten times as long as the
  transpose.
  """
  if x.dtype != jnp.bfloat16 or x.ndim < 2:
    return x.reshape(-1, x.shape[-1]).T
  *_, count, width = x.shape
  if x.size == count * width and count % 2 == 0:
    count //= 2
  return x.reshape(-1, count, width).transpose(2, 0, 1).reshape(width, -1)


project_trained.defvjp(_trained_forward, _trained_backward)


@jax.custom_vjp
def project_groups(
  x: Float[Array, "N in"], kernels: Float[Array, "E in out"] | Quantized, sizes: Int[Array, "E"]
) -> Float[Array, "N out"]:
  """Rows of x, sorted by group, each times the frozen kernel of its group, float32.

  `sizes`: how many rows each of the E groups has; they sum to N. Only x gets a gradient.
  """
  return _contract_groups(x, dequantize(kernels), sizes)


def _contract_groups(
  x: Float[Array, "N in"], kernels: Float[Array, "E in out"], sizes: Int[Array, "E"]
) -> Float[Array, "N out"]:
  return jax.lax.ragged_dot(
    x.astype(kernels.dtype), kernels, sizes, preferred_element_type=jnp.float32
  )


def _groups_forward(x, kernels, sizes):
  product = _contract_groups(x, dequantize(kernels), sizes)
  return product, (kernels, sizes, jnp.zeros((0,), x.dtype))


def _groups_backward(residuals, cotangent):
  kernels, sizes, like_x = residuals
  transposed = dequantize(kernels).swapaxes(1, 2)
  return _contract_groups(cotangent, transposed, sizes).astype(like_x.dtype), None, None


project_groups.defvjp(_groups_forward, _groups_backward)
