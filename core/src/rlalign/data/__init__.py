"""What travels through a run: examples, rollouts, batches, and the settings they were made with."""
