"""What a run leaves on the disk: its folder, commit points, logs, lock, and rows for later phases."""
