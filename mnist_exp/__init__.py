"""Experiment tracking for image classification: Hydra composes, Keras trains, MLflow records."""


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import metadata  # only for who asks: every command and worker process imports this module

    try:
        return metadata.version("mnist_exp")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
