"""Studies: many runs from one data file, tuned alike, resumable, compared with statistical tests."""
