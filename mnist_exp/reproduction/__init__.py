"""A run's record, and whether a repetition equals it."""
