"""Training loops' parts: train state, checkpoints, schedules."""
