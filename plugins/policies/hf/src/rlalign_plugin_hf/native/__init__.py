"""Decoding on raw weights: what runs between two tokens is matrix products, and no module of transformers."""
