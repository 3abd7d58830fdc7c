"""For authors: `rlalign new plugin`, `rlalign new pipeline` and `rlalign schema`."""
