"""Exit codes, and errors with a message for the user in one line."""

EXIT_FAILED, EXIT_INVALID, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143


class RequestError(ValueError):
    """An invalid request, such as a wrong value. The message has one line for each mistake."""


class RunError(RuntimeError):
    """A run failed for a reason that one line explains."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, because libraries such as Keras and TensorFlow add many more."""
    return str(error).strip().partition("\n")[0]
