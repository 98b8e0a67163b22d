"""In which forms frozen weights and caches can be kept in memory, by name. Imports no jax."""

WEIGHT_DTYPES = ("float32", "bfloat16")
QUANTIZATION_KINDS = ("int8", "int4", "nf4")
CACHE_KINDS = ("", "int8")  # "": in the dtype of the weights
