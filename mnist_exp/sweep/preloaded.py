"""Imported by the server that `launcher` forks its workers from, so that they need not wait for what they import."""

import os
import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent decides
os.environ["TTY_COMPATIBLE"] = "0"  # a terminal that many write to shows lines, no progress bars

from mnist_exp import tracking  # noqa: E402 - a second in which Ctrl-C may come
from mnist_exp.sweep.startup import import_tensorflow  # noqa: E402

tracking.import_database()
import_tensorflow()
