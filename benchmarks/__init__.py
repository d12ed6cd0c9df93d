"""Measurements, side by side with the plain scripts that this project replaces."""
