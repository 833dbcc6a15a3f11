"""Layers that are not settled yet."""
