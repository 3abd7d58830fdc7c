"""Runs side by side: `rlalign compare`, `diff`, `reproduce` and `chat`."""
