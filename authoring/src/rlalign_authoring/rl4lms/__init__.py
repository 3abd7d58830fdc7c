"""`rlalign migrate rl4lms`: a configuration of RL4LMs as a pipeline."""
