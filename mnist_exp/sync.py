"""`python -m mnist_exp.sync`: send records of runs that the tracking store did not accept."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mnist_exp import commands, console
from mnist_exp.errors import EXIT_FAILED, RequestError, RunError

if TYPE_CHECKING:
    from mnist_exp.tracking import RunInfo, Store


def _sync(arguments: Sequence[str]) -> int:
    parser = commands.Parser(
        "sync",
        (commands.store_option(),),
        description="Sends the records on this machine of runs that FAILED or were KILLED to the tracking store, where "
        "it lacks some of them. A run that had its scores is finished, too, without training it again.",
    )
    uri = parser.parse_args(arguments).tracking_uri
    from mnist_exp import tracking  # takes a second, so not for --help

    uri = tracking.existing(uri)
    failed = found = 0
    for name, stage in tracking.experiments(uri).values():
        if stage != "active":
            continue
        store = tracking.find_store(uri, name)
        tracking.end_dead_runs(store)
        for run in tracking.unsent_runs(store):
            found += 1
            try:
                _send(store, run)
            except (RequestError, RunError, OSError) as error:
                console.complain(f"{run.name}: {error}")
                failed += 1
    if not found:
        console.say(f"nothing to send: {uri} has the records on this machine of all runs that ended")
    return EXIT_FAILED if failed else 0


def _send(store: "Store", run: "RunInfo") -> None:
    from mnist_exp import tracking
    from mnist_exp.job import compose, prepare_job, run_job

    if tracking.is_evaluated(store, run):
        config, overrides, output = compose([f"resume={run.run_id}"])
        config.tracking.uri = store.uri
        run_job(prepare_job(config, overrides), output)
    else:
        tracking.send_record(store, run)
        console.say(f"{run.name}  {run.run_id[: console.ID_LETTERS]}  sent; it is {run.status}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments

    def command() -> int:
        with console.interruptible():
            return _sync(given)

    return commands.run(command, interrupted="interrupted; the same command sends the rest")


if __name__ == "__main__":
    sys.exit(main())
