"""`python -m mnist_exp.decide`: add seeds until it is decided which of two settings is better. See docs/deciding.md."""

import argparse
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mnist_exp import commands, console, job, provenance
from mnist_exp.errors import EXIT_FAILED, EXIT_INTERRUPTED, RequestError, RunError
from mnist_exp.redact import redact
from mnist_exp.sweep import pair

if TYPE_CHECKING:
    from mnist_exp.analysis.sequential import Samples
    from mnist_exp.tracking import Store

# MLflow and SciPy take 2 s to import, so the functions below import them: `--help` and a mistake do not wait.
METRIC = "final_val_accuracy"
MAX_SEEDS, MAX_MOST = 40, 1000
SMALLEST = 0.1  # points of accuracy
WIDTH = 80


class Settings(NamedTuple):
    """The arguments of `train` that both settings share, the first seed, the tracking URI and experiment."""

    arguments: list[str]
    seed: int
    uri: str | None
    experiment: str

    def store(self) -> "Store":
        """Where the runs are recorded, once there are some."""
        from mnist_exp import tracking

        return tracking.find_store(self.uri, self.experiment)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    again = f"interrupted; the same command continues: python -m mnist_exp.decide {shlex.join(given)}"
    return commands.run(lambda: _decide(_parse(given)), failed="no decision", interrupted=again)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = commands.Parser(
        "decide",
        (commands.store_option(),),
        description="Trains two settings with more and more seeds, until a difference is shown or is bounded below "
        "--smallest. The overrides are those of `train`; one of them has two values, such as model=mlp,residual.",
    )
    parser.add_argument("overrides", nargs="+", metavar="OVERRIDE")
    parser.add_argument(
        "--max-seeds", type=int, default=MAX_SEEDS, metavar="N", help="seeds of each setting; default: %(default)s"
    )
    parser.add_argument(
        "--smallest",
        type=float,
        metavar="X",
        help=f"the smallest difference of interest, in points for an accuracy; default: {SMALLEST} points",
    )
    parser.add_argument("--metric", default=METRIC, help="the metric to decide by; default: %(default)s")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder with your own options, as for `train`")
    options = parser.parse_intermixed_args(arguments)
    if not 2 <= options.max_seeds <= MAX_MOST:
        parser.error(f"--max-seeds must be from 2 to {MAX_MOST:,}, got {options.max_seeds}")
    if options.metric.startswith("test_"):
        parser.error(f"--metric must not be a test metric, because the runs are chosen by it; got {options.metric!r}")
    if options.smallest is None and "accuracy" not in options.metric:
        parser.error(f"--smallest has a default for accuracies only: give it for {options.metric}")
    options.smallest = SMALLEST if options.smallest is None else options.smallest
    if not options.smallest > 0:
        parser.error(f"--smallest must be above 0, got {options.smallest:g}")
    if options.tracking_uri is not None:
        options.overrides.append(f'tracking.uri="{options.tracking_uri}"')
    return options


def _decide(options: argparse.Namespace) -> int:
    settings = _settings(options.overrides, options.config_dir)
    from mnist_exp.analysis import sequential, statistics

    scale = 100 if "accuracy" in options.metric else 1  # accuracies lie in 0..1, their differences are given in points
    metric, most, smallest = options.metric, options.max_seeds, options.smallest / scale
    sweep = ""

    def samples(seeds: int) -> "Samples":
        nonlocal sweep
        sweep = _train(settings, seeds)
        return _scores(settings, seeds, sweep, metric)

    try:
        for look in sequential.decide(samples, most, smallest):
            if look.outcome is None and look.n < most:
                console.say(sequential.progress(look, metric, smallest))
    except statistics.Untestable as error:
        raise RunError(str(error)) from error
    console.say(textwrap.fill(sequential.verdict(look, metric, smallest, most), WIDTH))
    console.say(f"see the runs:  {_compare(settings, sweep, metric)}")
    if look.outcome is None:
        again = f"seed={settings.seed + most} (these seeds have been looked at)"
        console.say(f"go on:         the same command with {again}")
    return 0


def _settings(overrides: Sequence[str], config_dir: Path | None) -> Settings:
    """Checks both settings.

    Raises:
        RequestError: they are not two, or the config of one is invalid.
    """
    parsed = pair.parse(overrides)
    search = [] if config_dir is None else [f"hydra.searchpath=[{config_dir.absolute().as_uri()}]"]
    config, _ = (job.compose([*given, *search]).config for given in (parsed.first, parsed.second))
    folder = [] if config_dir is None else ["--config-dir", str(config_dir)]
    return Settings([*parsed.sweep, *folder], config.seed, config.tracking.uri, config.tracking.experiment)


def _train(settings: Settings, seeds: int) -> str:
    """Trains both settings with that many seeds, except for the finished runs; returns the name of the sweep."""
    span = f"seed=range({settings.seed},{settings.seed + seeds})"
    command = [sys.executable, "-m", "mnist_exp.train", "-m", span, *settings.arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:  # each batch would print all runs and links
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number, handler in handlers.items():
            if handler is not signal.SIG_IGN:  # as a shell sets it for background processes
                signal.signal(number, lambda number, _: child.send_signal(number))
        identifier = provenance.process(child.pid)
        code = child.wait()  # also after Ctrl-C, until its runs are closed
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code == EXIT_FAILED:
        raise RunError("a run failed, see above; the same command trains only what is missing")
    if code:  # the child has said why
        sys.exit(code)
    from mnist_exp import tracking

    sweep = tracking.sweep_of(settings.store(), identifier)
    if sweep is None:
        raise RequestError("the batch trained nothing, as with sweep.preflight=only")
    return sweep


def _scores(settings: Settings, seeds: int, sweep: str, metric: str) -> "Samples":
    """The metric of both settings by seed, under their labels in tables."""
    from mnist_exp import tracking
    from mnist_exp.analysis import leaderboard

    runs = tracking.sweep_runs(settings.store(), sweep)
    board = leaderboard.board(runs[::-1], leaderboard.Choice(sweep=sweep), metric)
    rows = [row for table in board.tables for row in table.rows]
    if len(board.tables) != 1 or len(rows) != 2:
        what = "the same runs" if len(rows) == 1 else "runs that are not scored on the same images"
        raise RequestError(f"the two settings give {what}, so there is nothing to decide")
    found = {row.label: row.scores(metric) for row in rows}
    for label, sample in found.items():
        if len(sample) < seeds:
            raise RunError(f"{seeds - len(sample)} of {seeds} runs of {label} have no finite {metric}")
    return found


def _compare(settings: Settings, sweep: str, metric: str) -> str:
    """The command that shows the runs."""
    from mnist_exp import tracking

    words = ["python", "-m", "mnist_exp.compare", "--sweep", sweep]
    if settings.experiment != tracking.default_experiment():
        words += ["--experiment", settings.experiment]
    if settings.uri is not None:
        words += ["--tracking-uri", redact(settings.uri)]
    if metric != METRIC:
        words += ["--metric", metric]
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
