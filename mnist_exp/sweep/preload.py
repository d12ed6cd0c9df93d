"""Imported by the fork server alone, which can only be given a module to import; see `startup.start_fork_server`."""

from mnist_exp.sweep import startup

startup.prepare_worker()  # before the imports, during which Ctrl-C may come

from mnist_exp import tracking  # noqa: E402

tracking.import_database()
startup.import_tensorflow()
