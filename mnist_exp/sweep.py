"""What surrounds the runs of a multirun: every job checked before the first, a run of the sweep's own, its summary."""

import csv
import io
import itertools
import json
import secrets
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from mnist_exp import RequestError, terminal
from mnist_exp.config import CONF_DIR, Config, ConfigError, build, check, check_batch, explain
from mnist_exp.data import Dataset, resolve_auto

EXIT_FAILED, EXIT_SENSELESS = 1, 2
# Okabe and Ito's, distinguishable to colour-blind readers.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
_open: list[tuple[Any, str]] = []  # the store and the id of the sweep that this process has begun and not closed


class SweepCallback(Callback):
    """Hydra calls this around a multirun. It opens and closes the sweep's own run and tells the jobs about it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check all jobs, settle what data=auto means, open the sweep's run; exit with 2 when a job makes no sense."""
        overrides = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        assert isinstance(overrides, list)
        try:
            jobs = check_jobs(kwargs["config_name"], overrides)
            settled = {settle(job) for job in jobs if is_auto(job)}
            check_data(jobs)
            from mnist_exp import tracking  # MLflow takes a second to import: not for a mistake

            store = tracking.open_store(jobs[0].tracking.uri, jobs[0].tracking.experiment)
            self.sweep = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
            self.store, self.jobs = store, len(jobs)
            with tracking.undisturbed():
                tracking.open_sweep(store, self.sweep, " ".join(sys.argv[1:]), len(jobs))
                _open.append((store, self.sweep))
        except Exception as error:  # noqa: BLE001 - Hydra would make a warning of it and go on
            _leave(error)
        extra = [f"sweep.id={self.sweep}", *(f"sweep.data={name}" for name in settled)]
        with open_dict(config):
            for override in extra:
                config.hydra.overrides.task.append(override)
        print(f"sweep {self.sweep}: {len(jobs)} runs", file=sys.stderr, flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Close the sweep's run with its summary; exit with 1 when a job did not finish."""
        try:
            finished = close_sweep(self.store, self.sweep, "FINISHED")
        except Exception as error:  # noqa: BLE001 - as above
            _leave(error)
        if finished < self.jobs:
            sys.exit(EXIT_FAILED)


def _leave(error: Exception) -> NoReturn:
    if isinstance(error, RequestError):
        terminal.complain(str(error))
        sys.exit(EXIT_SENSELESS)
    traceback.print_exception(error)
    sys.exit(EXIT_FAILED)


def abandon_sweep(status: str) -> bool:
    """Close the sweep that is open when something ends the command before its time; whether there was one."""
    began = bool(_open)
    for store, sweep in _open:
        close_sweep(store, sweep, status)
    return began


def sweep_tags(sweep: str, number: int) -> dict[str, str]:
    """Tags of the n-th run of a sweep: the sweep, and a colour unlike its neighbours' in MLflow's charts."""
    return {"sweep": sweep, "mlflow.runColor": COLORS[number % len(COLORS)]}


def is_auto(config: Config) -> bool:
    """Whether the data source is still to be settled."""
    return config.data["_target_"] == "mnist_exp.data.auto"


def settle(config: Config) -> str:
    """Put the concrete source in the place of data=auto; returns its name."""
    option = config.sweep.data or resolve_auto(config.data.get("path"))
    node = dict(OmegaConf.load(CONF_DIR / "data" / f"{option}.yaml"))
    given = {key: value for key, value in config.data.items() if key in node and value is not None}
    config.data = {**node, **given, "_target_": node["_target_"]}
    return option


def load(config: Config) -> Dataset:
    """Load the data of a config that names a concrete source, and refuse a batch that is larger.

    Raises:
        RequestError: the data cannot be used, or not so.
    """
    dataset = build(config.data)
    check_batch(config, len(dataset.train.labels))
    return dataset


def check_data(jobs: Sequence[Config]) -> None:
    """Load what the jobs train on, each kind of it once.

    Raises:
        ConfigError: with a line for each mistake.
    """
    mistakes = []
    for job in {json.dumps([job.data, job.trainer.batch_size]): job for job in jobs}.values():
        try:
            load(job)
        except RequestError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))


def check_jobs(config_name: str, overrides: Sequence[str]) -> list[Config]:
    """Compose and check every job that a grid of overrides stands for.

    Raises:
        ConfigError: with a line for each mistake, each job's mistakes behind its overrides.
    """
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(overrides))
    axes = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_discrete_sweep()
        else [o.input_line or ""]
        for o in parsed
    ]
    jobs, mistakes = [], []
    before = HydraConfig.instance().cfg
    for job in itertools.product(*axes):
        try:
            composed = compose(config_name, list(job), return_hydra_config=True)
            HydraConfig.instance().set_config(composed)
            with open_dict(composed):
                del composed["hydra"]
            jobs.append(check(composed))
        except (ConfigError, HydraException) as error:
            swept = " ".join(choice for choice, axis in zip(job, axes, strict=True) if len(axis) > 1)
            lines = str(error).splitlines() if isinstance(error, ConfigError) else [explain(error)]
            mistakes += [f"{swept}: {line}" if swept else line for line in lines]
    HydraConfig.instance().cfg = before
    if not all(axes):
        mistakes.append(f"the sweep has no runs: {' '.join(overrides)} matches no option and no value")
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    return jobs


def close_sweep(store: Any, sweep: str, status: str) -> int:
    """Print the sweep's table, record it in the sweep's own run and end that; returns how many runs finished."""
    from mnist_exp import tracking

    with tracking.undisturbed():
        _open.clear()
        runs = sorted(tracking.sweep_runs(store, sweep), key=_rank)
        finished = [run for run in runs if run.info.status == "FINISHED"]
        rows = _rows(runs)
        failed = len(rows) - len(finished)
        title = f"sweep {sweep}: {len(finished)} finished" + (f", {failed} not" if failed else "")
        terminal.sweep_table(title, rows)
        print(f"\ncompare them:  {store.ui_command}\nthen open      {store.ui_link(sweep)}", flush=True)
        note = f"{title}, best by validation accuracy first\n\n{_markdown(rows, store.experiment_id)}"
        files = {"sweep.csv": _csv(rows), "sweep.md": note}
        tracking.close_sweep(store, sweep, status, finished[0] if finished else None, files, note)
        return len(finished)


def _rank(run: Any) -> tuple[bool, float]:
    return run.info.status != "FINISHED", -run.data.metrics.get("final_val_accuracy", 0.0)


def _rows(runs: Sequence[Any]) -> list[terminal.Row]:
    given = [run.data.tags["overrides"].split() for run in runs]
    shared = set.intersection(*map(set, given)) if len(given) > 1 else set()
    return [
        terminal.Row(
            name=run.info.run_name,
            status=run.info.status,
            swept=" ".join(override for override in overrides if override not in shared),
            val_accuracy=run.data.metrics.get("final_val_accuracy"),
            test_accuracy=run.data.metrics.get("test_accuracy"),
            seconds=run.data.metrics.get("fit_seconds"),
            run_id=run.info.run_id,
        )
        for run, overrides in zip(runs, given, strict=True)
    ]


def _csv(rows: Sequence[terminal.Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(terminal.Row._fields)
    writer.writerows(rows)
    return text.getvalue()


def _markdown(rows: Sequence[terminal.Row], experiment_id: str) -> str:
    lines = ["| run | status | swept | val_accuracy | test_accuracy | seconds |", "|---|---|---|--:|--:|--:|"]
    for row in rows:
        link = f"[{row.name}](#/experiments/{experiment_id}/runs/{row.run_id})"  # within MLflow's UI
        lines.append("| " + " | ".join((link, row.status, row.swept, *terminal.figures(row))) + " |")
    return "\n".join(lines) + "\n"
