"""Experiment tracking for image classification: Hydra composes, Keras trains, MLflow records."""


class RequestError(ValueError):
    """What was asked for makes no sense here; the message is a line for the user for each mistake."""


class RunError(RuntimeError):
    """A run failed for a reason that one line explains to the user."""
