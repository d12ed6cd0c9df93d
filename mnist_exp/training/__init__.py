"""Trains and scores one Keras model."""
