"""The thread that sends a run to its store, so that training never waits for the store."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue

from mnist_exp.console import say
from mnist_exp.errors import RunError
from mnist_exp.tracking.store import store_message

RETRY_SECONDS = 30.0  # between failed calls while the run trains
TRIES, PAUSE_SECONDS = 3, 1.0  # for a call that fails while the end of the run waits for it
PROGRESS_SECONDS = 10.0  # between messages while the end of the run waits
STALLED_SECONDS = 300.0  # without a successful call the end of the run stops waiting; one large file may take minutes
STOP_SECONDS = 10.0  # for the thread to end


class Sender:
    """Makes the store calls of one run in a separate thread, so that training never waits for a store.

    Python raises signals in the main thread only, so no signal aborts a transaction of this thread. The threads share
    `SimpleQueue`s, because Ctrl-C could leave a `threading` lock locked. A failed call is repeated; while the run
    trains, the other calls go first. The thread ends with the run, before any later fork.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._answers: SimpleQueue[Exception | None] = SimpleQueue()
        self._failed: deque[Callable[[], object]] = deque()
        self._flushing = self._stopped = False
        self._succeeded = 0
        self._complaint = ""
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], object]) -> None:
        """Queue a call. It must be safe to make it twice."""
        self._calls.put(call)

    def flush(self, signals: Sequence[int] = ()) -> None:
        """Wait until all calls have succeeded, and print how many are left.

        Args:
            signals: a list to which a signal handler adds; after `PROGRESS_SECONDS` a signal ends the wait.

        Raises:
            RunError: no call succeeded for `STALLED_SECONDS`, or a signal came.
            Exception: the error of a call that failed `TRIES` times.
        """
        answers = self._answers = SimpleQueue()
        self._flushing = True
        self._wake.put(None)
        self.submit(partial(answers.put, None))
        began = reported = moved = time.monotonic()
        succeeded = self._succeeded
        while True:
            with suppress(Empty):
                error = answers.get(timeout=1.0)
                if error is not None:
                    raise error
                return
            now = time.monotonic()
            if self._succeeded > succeeded:
                succeeded, moved = self._succeeded, now
            if now - moved > STALLED_SECONDS:
                raise RunError(f"nothing arrived for {STALLED_SECONDS:.0f} s, calls left: {self._left()}")
            if now - reported > PROGRESS_SECONDS:
                reported = now
                say(f"tracking: the store is slow, calls left: {self._left()}; Ctrl-C ends the wait", sys.stderr)
            if signals and now - began > PROGRESS_SECONDS:
                raise RunError(f"interrupted, calls left: {self._left()}")

    def stop(self) -> None:
        """End the thread after its current call."""
        self._stopped = True
        self._wake.put(None)
        self.submit(lambda: None)
        self._thread.join(STOP_SECONDS)

    def _left(self) -> int:
        return self._calls.qsize() + len(self._failed)

    def _run(self) -> None:
        while not self._stopped:
            again = self._failed and (self._flushing or self._calls.empty())
            call = self._failed.popleft() if again else self._calls.get()
            error = None if self._stopped else self._attempt(call)
            if error is None:
                self._succeeded += 1
                continue
            if self._flushing:
                self._failed.appendleft(call)
                self._answers.put(error)
            else:
                self._failed.append(call)
            with suppress(Empty):
                self._wake.get(timeout=RETRY_SECONDS)

    def _attempt(self, call: Callable[[], object]) -> Exception | None:
        """Make a call, up to `TRIES` times if `flush` waits for it; returns its last error."""
        for left in reversed(range(TRIES)):
            try:
                call()
            except Exception as error:  # noqa: BLE001 - an error that ended the thread would lose all later calls
                if not self._flushing and store_message(error) != self._complaint:
                    self._complaint = store_message(error)
                    say(f"tracking: not sent yet, the local record has it: {self._complaint}", sys.stderr)
                if not (left and self._flushing) or isinstance(error, RunError):
                    return error
                time.sleep(PAUSE_SECONDS)
            else:
                return None
        raise AssertionError
