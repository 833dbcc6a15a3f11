"""Ratios of cost beside flax.linen, plain Haiku and pure JAX."""
