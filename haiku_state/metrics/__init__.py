"""Writing what is measured."""
