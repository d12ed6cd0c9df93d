"""`python -m mnist_exp.compare`: compare tracked runs over their seeds. docs/comparing.md explains the output."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_exp import commands, console
from mnist_exp.errors import RequestError

if TYPE_CHECKING:
    from mnist_exp.analysis.leaderboard import Board
    from mnist_exp.analysis.report import Block, Compared

# MLflow and SciPy take 2 s to import, so the functions below import them: `--help` and a mistake do not wait.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def command() -> int:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        console.say((_inspect(options) if options.command else _compare(options)).removesuffix("\n"))
        return 0

    return commands.run(command, failed="the comparison failed")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = commands.Parser(
        "compare",
        (commands.store_option(),),
        description="Compares tracked runs over their seeds, by default the newest sweep. `show RUN` shows one "
        "run, `diff RUN RUN` the differences of two. RUN is a run's id, the beginning of its id, or its name.",
    )
    parser.add_argument("command", nargs="*", metavar="show RUN | diff RUN RUN")
    parser.add_argument("--uri", dest="tracking_uri", help=argparse.SUPPRESS)  # the earlier name of --tracking-uri
    parser.add_argument(
        "--experiment",
        metavar="NAME",
        help="all runs of this experiment; default: the newest sweep of MLFLOW_EXPERIMENT_NAME, else of mnist_exp",
    )
    parser.add_argument("--sweep", metavar="ID", help="the runs of this sweep")
    parser.add_argument(
        "--tag", action="append", default=[], metavar="KEY=VALUE", help="the runs with this tag; repeatable"
    )
    parser.add_argument(
        "--filter", metavar="TEXT", help="the runs that match this filter of MLflow, such as \"params.seed = '1'\""
    )
    parser.add_argument(
        "--run", action="append", default=[], metavar="ID", help="the run whose id begins with this; repeatable"
    )
    parser.add_argument(
        "--metric", default="final_val_accuracy", help="the metric to rank and test by; default: %(default)s"
    )
    parser.add_argument("--by", metavar="SETTING", help="compare the values of a setting, such as optimizer")
    parser.add_argument("--effects", action="store_true", help="say which settings mattered, also of a grid")
    parser.add_argument("--top", metavar="N", type=int, default=10, help="rows to show of each table; default: 10")
    parser.add_argument("--rows", metavar="SETTING", help="with --columns: one table of two settings, for a paper")
    parser.add_argument("--columns", metavar="SETTING", help="a setting, or data")
    parser.add_argument("--all-pairs", action="store_true", help="list all pairs of these rows, not only the leader's")
    parser.add_argument(
        "--format", choices=("text", "markdown", "csv", "json", "latex"), default="text", help="default: text"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a report with figures for a browser")
    options = parser.parse_args(arguments)
    _check_form(parser, options)
    if options.top < 1:
        parser.error(f"--top must be a whole number, at least 1, got {options.top}")
    unlike = [text for text in options.tag if "=" not in text]
    if unlike:
        parser.error(f"--tag must be of the form KEY=VALUE, got {unlike[0]!r}")
    if options.command and (options.command[0], len(options.command)) not in (("show", 2), ("diff", 3)):
        parser.error(f"the command must be `show RUN`, `diff RUN RUN` or none, got {' '.join(options.command)!r}")
    return options


def _check_form(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses options that no form of the output reads."""
    if (options.rows is None) != (options.columns is None):
        parser.error("--rows and --columns must be given together")
    if (options.rows is None and options.format == "latex") or (options.rows is not None and options.format == "json"):
        parser.error("--format latex needs --rows and --columns, which do not go with --format json")
    alone = [f"--{name.replace('_', '-')}" for name in ("by", "effects", "all_pairs", "html") if getattr(options, name)]
    if options.rows is not None and alone:
        parser.error(f"--rows and --columns make one table; {alone[0]} belongs to a comparison without them")
    if options.effects and options.format == "csv":
        parser.error("--effects needs --format text, markdown or json; csv lists the rows only")
    if options.command and options.format not in ("text", "markdown"):
        parser.error(f"--format of {options.command[0]} must be text or markdown, got {options.format}")


def _inspect(options: argparse.Namespace) -> str:
    from mnist_exp import tracking
    from mnist_exp.analysis import inspect

    uri = tracking.existing(options.tracking_uri)
    named = [tracking.find_run(uri, wanted) for wanted in options.command[1:]]
    document = list(inspect.show(uri, *named) if len(named) == 1 else inspect.diff(uri, *named))
    return _printed(document, options.format)


def _compare(options: argparse.Namespace) -> str:
    from mnist_exp import tracking
    from mnist_exp.analysis import export, leaderboard, pivot, predictions, report

    store = tracking.find_store(options.tracking_uri, options.experiment or tracking.default_experiment())
    everything = options.experiment is not None or options.filter is not None
    choice = leaderboard.Choice(
        options.sweep, dict(text.split("=", 1) for text in options.tag), options.run, everything
    )
    matching = None
    if options.filter is not None:
        matching = {run.run_id for run in tracking.search_runs(store, options.filter)}
    board = leaderboard.board(tracking.search_runs(store), choice, options.metric, matching)
    if options.rows is not None:
        return pivot.render(pivot.pivot(board, options.rows, options.columns), options.format)
    compared = report.examine(
        board, options.by, options.top, predictions.of_rows(store.uri), every_setting=options.effects
    )
    if options.html is not None:
        _write_html(store.uri, f"{store.experiment}: {board.chosen}", options, board, compared)
    if options.format == "csv":
        return export.as_csv(compared, board.metric)
    if options.format == "json":
        return export.as_json(board, compared)
    document = list(report.blocks(board, compared, options.top, all_pairs=options.all_pairs))
    return _printed(document, options.format)


def _printed(document: "Sequence[Block]", form: str) -> str:
    from mnist_exp.analysis import render

    return render.as_text(document, console.columns(sys.stdout)) if form == "text" else render.as_markdown(document)


def _write_html(
    uri: str, title: str, options: argparse.Namespace, board: "Board", compared: "Sequence[Compared]"
) -> None:
    from mnist_exp.analysis import pictures, render, report  # pictures imports Matplotlib, which only HTML needs

    drawn = [part._replace(pictures=list(pictures.of_table(uri, part.table, board.metric))) for part in compared]
    text = render.as_html(list(report.blocks(board, drawn, options.top, all_pairs=True)), title)
    try:
        options.html.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"--html {options.html} cannot be written: {error.strerror}") from error
    console.say(f"{options.html}: {len(text.encode()) // 1024} KiB", sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
