"""What a layer keeps for the backward pass, by the name of the policy. Imports no jax.

none       what would take a product with a weight matrix to recompute
attention  of that the results of attention alone
full       the layer's input alone, of bfloat16 models in bfloat16 (not on CPUs): the least memory,
           one more forward pass
offload    what `none` keeps, in the memory of the host
"""

REMAT_POLICIES = ("none", "attention", "full", "offload")
