"""Interrupts as libraries pass them on."""


def hidden():
    """Raises AttributeError for a Ctrl-C, as a `finally` clause of OmegaConf does when its config is half made."""
    try:
        raise KeyboardInterrupt
    finally:
        raise AttributeError
