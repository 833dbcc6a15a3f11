"""The parts of `haiku_state.core.lift`."""
