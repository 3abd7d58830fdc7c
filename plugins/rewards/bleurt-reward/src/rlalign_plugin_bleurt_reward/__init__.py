"""BLEURT for rlalign in pure torch: official checkpoints and ports, without TensorFlow."""
