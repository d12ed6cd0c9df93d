"""Exit codes, and the errors that one line explains to the user."""

EXIT_FAILED, EXIT_SENSELESS, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143


class RequestError(ValueError):
    """What was asked for makes no sense here; the message is a line for the user for each mistake."""


class RunError(RuntimeError):
    """A run failed for a reason that one line explains to the user."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, because libraries such as Keras and TensorFlow add many more."""
    return str(error).strip().partition("\n")[0]
