"""Exit codes, and errors with a message for the user in one line."""

EXIT_FAILED, EXIT_INVALID, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143


class RequestError(ValueError):
    """An invalid request, such as a wrong value. The message has one line for each mistake."""


class RunError(RuntimeError):
    """A run failed for a reason that one line explains."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, because libraries such as Keras and TensorFlow add many more."""
    return str(error).strip().partition("\n")[0]


def interruption(error: BaseException) -> KeyboardInterrupt | SystemExit | None:
    """The Ctrl-C or SIGTERM behind an error, or None. A library's `finally` clause may fail on it and hide it."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, KeyboardInterrupt | SystemExit):
        found = found.__context__
    return found
