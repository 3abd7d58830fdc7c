"""A run: its phases, models and commit points."""
