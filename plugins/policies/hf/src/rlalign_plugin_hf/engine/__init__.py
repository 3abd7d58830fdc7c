"""Sampling at fixed addresses: slots that rows come into and leave, one step for all, on a GPU in CUDA graphs."""
