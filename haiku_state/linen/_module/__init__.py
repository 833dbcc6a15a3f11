"""The parts of `haiku_state.linen.Module`."""
