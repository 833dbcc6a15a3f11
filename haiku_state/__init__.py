"""Linen-style modules and state for Haiku."""
