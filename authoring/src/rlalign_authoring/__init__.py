"""For authors: `rlalign new plugin`, `rlalign new pipeline`, `rlalign migrate` and `rlalign schema`."""
