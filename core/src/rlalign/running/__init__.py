"""A run: its phases, models and checkpoints."""
