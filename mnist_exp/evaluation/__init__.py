"""Scores finished runs on their own or on other test images, alone and as an ensemble."""
