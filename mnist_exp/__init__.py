"""Experiment tracking for image classification: Hydra composes, Keras trains, MLflow records."""
