"""Lifted transforms of modules."""
