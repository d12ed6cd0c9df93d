"""What surrounds the runs of a multirun: every job checked before the first, a run of the sweep's own, its summary."""

import atexit
import csv
import gc
import itertools
import json
import os
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from mnist_exp import console, provenance
from mnist_exp.config import (
    CONF_DIR,
    PACKAGE,
    Config,
    ConfigError,
    build,
    check,
    check_batch,
    explain,
    flatten,
    identity,
    targets,
)
from mnist_exp.data import Dataset, check_dataset, resolve_auto
from mnist_exp.errors import EXIT_FAILED, EXIT_SENSELESS, RequestError
from mnist_exp.figures.style import COLORS
from mnist_exp.provenance.modules import recordable, user_code
from mnist_exp.redact import redact, redact_file
from mnist_exp.sweep import processes, search

DONE = ("FINISHED", "SKIPPED")
TELL_SECONDS = 5.0
UNUSED = ("sklearn", "jax")  # Keras and TensorFlow import them where they find them, for wrappers that no run calls
Result = TypeVar("Result")


class Job(NamedTuple):
    """One run that a multirun is to make: its config, and the overrides that set it apart from its siblings."""

    config: Config
    swept: str

    @property
    def name(self) -> str:
        """That of its run."""
        return f"{self.config.name}-s{self.config.seed}"


class Sweep(NamedTuple):
    """A multirun under way."""

    id: str
    store: Any  # tracking.Store, whose import takes a second
    jobs: Sequence[Job]
    searched: frozenset[str] = frozenset()  # keys whose values a search chooses as it goes, not told by `jobs`


_open: list[Sweep] = []  # begun and not closed by this process: Hydra does not tell a callback of Ctrl-C


class SweepCallback(Callback):
    """Hydra calls this around a multirun. It opens and closes the sweep's own run and tells the jobs about it."""

    folder: Path  # of the sweep, absolute: jobs may have other names and working directories

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check all jobs, settle what data=auto means, open the sweep's run; exit with 2 when a job makes no sense."""
        given = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        assert isinstance(given, list)
        HydraConfig.instance().set_config(config)  # Hydra resolves sweep.dir=multirun/${name} outside of jobs too
        try:
            self.folder = Path(config.hydra.sweep.dir).absolute()
            shared = _threads(config, given)
            searched = search.searcher(config, given + shared)
            expanded = searched.probes() if searched else grid(config, given + shared)
            jobs = check_jobs(kwargs["config_name"], expanded)
            settled = {settle(job.config) for job in jobs if is_auto(job.config)}
            check_data(jobs)
            processes.import_beside(config.hydra.launcher)
            from mnist_exp import tracking  # MLflow takes a second to import: not for a mistake

            first = jobs[0].config
            store = tracking.open_store(first.tracking.uri, first.tracking.experiment)
            for job in jobs:
                if job.config.init_from is not None:
                    job.config.init_from = tracking.find_finished(store.uri, job.config.init_from)
            tracking.end_dead_runs(store)
            what = "ends of the space" if searched else "runs"
            prepare(jobs, store, here="BasicLauncher" in config.hydra.launcher._target_, what=what)
            if first.sweep.preflight == "only":
                sys.exit(0)
            if searched:  # the values of its jobs are not known yet, their number is
                jobs = [Job(first, "")] * (searched.remaining() * len(searched.seeds))
            sweep = open_sweep(jobs, store, searched.keys if searched else frozenset())
        except OmegaConfBaseException as error:
            _leave(ConfigError(explain(error)))
        except Exception as error:  # noqa: BLE001 - Hydra would make a warning of it and go on
            _leave(error)
        _add(config, [*shared, f"sweep.id={sweep.id}", *(f"sweep.data={name}" for name in settled)])
        warn_unrecorded([job.config for job in jobs])
        print(f"sweep {sweep.id}: {len(jobs)} runs", file=sys.stderr, flush=True)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remove secrets from the files that Hydra has just written for a job and its sweep."""
        settings = config.hydra
        files = [self.folder / "multirun.yaml"] if settings.mode == RunMode.MULTIRUN else []
        if settings.output_subdir is not None:
            files += Path(settings.runtime.output_dir, settings.output_subdir).glob("*.yaml")
        for path in files:
            redact_file(path)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Close the sweep's run with its summary; exit with 1 when a job has no result."""
        try:
            complete = [close_sweep(sweep, "FINISHED", self.folder / "search") for sweep in _open[:]]
        except Exception as error:  # noqa: BLE001 - as above
            _say(error)
            sys.exit(EXIT_FAILED)
        if not all(complete):
            sys.exit(EXIT_FAILED)


def _threads(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The override that divides the cores among jobs which run side by side, unless their threads are given."""
    threads = processes.threads_of_a_job(config.hydra.launcher, provenance.cores())
    swept = any(override.startswith("trainer.threads=") for override in overrides)
    return [] if threads is None or swept or config.trainer.threads is not None else [f"trainer.threads={threads}"]


def _add(config: DictConfig, overrides: Sequence[str]) -> None:
    """Add overrides of ours to those of every job, and keep them out of `hydra:job.override_dirname`."""
    ours = [*(override.partition("=")[0] for override in overrides), "sweep.trial"]
    excluded = ",".join(map(json.dumps, [*config.hydra.job.config.override_dirname.exclude_keys, *ours]))
    with read_write(config.hydra), open_dict(config):
        config.hydra.overrides.task += overrides
        config.hydra.overrides.hydra += [f"hydra.job.config.override_dirname.exclude_keys=[{excluded}]"]


def _leave(error: Exception) -> NoReturn:
    _say(error)
    sys.exit(EXIT_SENSELESS if isinstance(error, RequestError) else EXIT_FAILED)


def _say(error: Exception) -> None:
    """Print one line for a problem that the user can mend, a traceback for a bug."""
    if isinstance(error, RequestError):
        console.complain(str(error))
    else:
        console.print_traceback(error)


def prepare(jobs: Sequence[Job], store: Any, *, here: bool, what: str = "runs") -> None:
    """Build every model on shapes only, and say what is to come.

    Args:
        jobs: all of them.
        store: says which of them an earlier run has the result of.
        here: they will be run by this process, and so have its devices.
        what: they are called.

    Raises:
        ConfigError: with a line for each model or optimizer that cannot be built.
        DeviceError: this process lacks the devices.
    """
    kinds = {json.dumps(job.config.data): job.config for job in jobs}
    datasets = {kind: load(config) for kind, config in kinds.items()}
    given = [(job, datasets[json.dumps(job.config.data)]) for job in jobs]
    missing = []
    for job, data in given:
        with suppress(RequestError):  # another machine may have the devices that this one lacks
            if _finished(job.config, data, store):
                continue
        missing.append((job, data))
    before = f", {len(jobs) - len(missing)} of them finished before" if len(missing) < len(jobs) else ""
    said = f"{len(jobs)} {what}{before}"
    if missing:
        import_tensorflow()
        from mnist_exp.sweep import preflight
        from mnist_exp.training import devices

        trainer = missing[0][0].config.trainer
        devices.configure(trainer.devices if here else "cpu", trainer.threads or provenance.cores())
        memory = provenance.memory() if here else None
        sizes = preflight.models([(job.config, data, job.swept) for job, data in missing], memory)
        sized = [(job.config, data, size) for (job, data), size in zip(missing, sizes, strict=True)]
        span = " to ".join(f"{size:,}" for size in sorted({min(sizes), max(sizes)}))
        said += f"; models of {span} parameters; {preflight.plan(sized, store)}"
    console.say(f"preflight: {said}", sys.stderr)


def import_tensorflow() -> None:
    """Import all that a run needs, once a process and without what native libraries print."""
    if "mnist_exp.experiment" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    unused = [name for name in UNUSED if name not in sys.modules]
    gc.disable()  # what is imported stays: looking through it for garbage takes a second of the import's four
    try:
        for name in unused:
            sys.modules[name] = None  # type: ignore[assignment]  # not to be found
        with console.quiet_stderr("importing TensorFlow"):
            import mnist_exp.experiment  # noqa: F401
        provenance.package_files(PACKAGE)  # as they are imported: what a fork of this process computes with
        provenance.own_code(PACKAGE)
    finally:
        for name in unused:
            del sys.modules[name]
        gc.freeze()  # and would take each run a third of a second
        gc.enable()
    atexit.register(gc.freeze)  # and Python's end a fifth


def open_sweep(jobs: Sequence[Job], store: Any, searched: frozenset[str] = frozenset()) -> Sweep:
    """Begin the sweep's own run."""
    from mnist_exp import tracking

    sweep = Sweep(f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}", store, jobs, searched)
    with tracking.undisturbed():
        tracking.open_sweep(store, sweep.id, shlex.join(sys.argv[1:]), len(jobs))
        _open.append(sweep)
    return sweep


def abandon_sweep(status: str) -> bool:
    """Close the sweep that is open when something ends the command before its time; whether there was one."""
    abandoned = _open[:]
    for sweep in abandoned:
        try:
            close_sweep(sweep, status)
        except Exception as error:  # noqa: BLE001 - the command is ending for another reason, which its exit code tells
            _say(error)
    return bool(abandoned)


def job_tags(sweep: str, number: int) -> dict[str, str]:
    """Tags of the n-th run of a sweep, with a colour unlike its neighbours' in MLflow's charts."""
    from mnist_exp import tracking

    return tracking.sweep_tags(sweep, number, COLORS[number % len(COLORS)])


def stopped(config: Config, store: Any) -> bool:
    """Whether the sweep of a job has had a failure after which nothing more is to start."""
    from mnist_exp import tracking

    assert config.sweep.id is not None
    return config.sweep.on_error == "stop" and tracking.sweep_stopped(store, config.sweep.id)


def finished_before(config: Config, dataset: Dataset, store: Any, number: int) -> Mapping[str, float] | None:
    """Metrics of a finished run of the same identity, which becomes the sweep's n-th; None: the job has to train.

    One query a job, 10 ms however many runs the store has: so every job sees what others finished meanwhile.
    """
    from mnist_exp import tracking

    assert config.sweep.id is not None
    name = f"{config.name}-s{config.seed}"
    run = _finished(config, dataset, store, name)
    if run is None:
        return None
    tracking.join_sweep(store, run, config.sweep.id, number)
    console.say(console.skipped_line(name, run.data.metrics, run.info.run_id))
    return run.data.metrics


def _finished(config: Config, dataset: Dataset, store: Any, name: str | None = None) -> Any:
    """The latest finished run of the same identity; with a name to say it under, says why there is none of many."""
    from mnist_exp import tracking

    if not config.sweep.skip_finished:
        return None
    threads = config.trainer.threads or provenance.cores()
    device = _device(config.trainer.devices, threads)
    facts = provenance.facts(PACKAGE, user_code(targets(config)), dataset.fingerprint, threads, device)
    wanted = identity(config, facts)
    needed = {"final_val_accuracy", "test_accuracy", *config.sweep.objective}  # a run of an older version may lack some
    alike = [
        run
        for run in tracking.finished_runs(store, identity(config, {}))
        if "pruned" not in run.data.tags and needed <= run.data.metrics.keys()
    ]
    found = next((run for run in alike if run.data.tags.get("identity") == wanted), None)
    compared = next((run for run in alike if "identity.facts" in run.data.tags), None)
    if compared is not None and found is None and name is not None:
        different = difference(json.loads(compared.data.tags["identity.facts"]), facts)
        console.say(console.again_line(name, compared.info.run_id, different), sys.stderr)
    return found


def _device(devices: str, threads: int) -> str:
    """As `devices.describe` says it, without the seconds that TensorFlow's import takes where it can be no GPU."""
    kind, _, number = devices.partition(":")
    if kind == "cpu" or (kind == "auto" and not provenance.may_have_gpu()):
        return f"{number} x cpu" if number else "cpu"
    import_tensorflow()
    from mnist_exp.training import devices as tensorflow

    return tensorflow.describe(tensorflow.configure(devices, threads))


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Names the facts in which two runs differ, such as `not the same code, threads (1, now 2)`; empty when in none.

    What an earlier version did not record is called so: it may have been the same.
    """
    unknown = sorted(now.keys() - before.keys())
    recorded = {key: now[key] for key in now if key not in unknown}
    old, new = ({key: value for key, value in flatten(tree).items() if value != {}} for tree in (before, recorded))
    names = {"source": "code"} | {key: key.removeprefix("versions.") for key in old | new if key != "source"}
    digests = ("source", "data")
    changed = [
        names[key] if key in digests else f"{names[key]} ({old.get(key, 'none')}, now {new.get(key, 'none')})"
        for key in old | new
        if old.get(key) != new.get(key)
    ]
    said = [f"not the same {', '.join(changed)}"] if changed else []
    return ", and ".join(said + ([f"no record of {', '.join(unknown)}"] if unknown else []))


def attempt(train: Callable[[], Result], retries: int) -> Result:
    """Train, and again up to `retries` times when the memory did not suffice, after all that was kept is freed."""
    from mnist_exp.training import device_loop
    from mnist_exp.training.devices import OUT_OF_MEMORY

    for left in reversed(range(retries + 1)):
        try:
            return train()
        except OUT_OF_MEMORY as error:
            if not left:
                raise
            console.complain(f"out of memory, trying again: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        device_loop.free()  # after the except clause, whose traceback holds what the failed attempt had
    raise AssertionError


def job_failed(sweep: DictConfig, tracked: DictConfig) -> None:
    """Do what `sweep.on_error` says."""
    if sweep.on_error == "stop":
        from mnist_exp import tracking

        try:
            tracking.stop_sweep(tracking.open_store(tracked.uri, tracked.experiment), sweep.id)
        except RequestError as error:
            console.complain(f"the other jobs are not stopped: {error}")


def warn_unrecorded(configs: Sequence[Config]) -> None:
    """Say, once a command, what of the code its runs cannot record."""
    _, lost = recordable(user_code(frozenset().union(*map(targets, configs))))
    for line in (*provenance.own_code(PACKAGE).problems, *([lost] if lost else [])):
        console.warn(line)


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
    """Load the data of a config that names a concrete source, print its warnings, refuse a batch that is larger.

    Raises:
        RequestError: the data cannot be used, or not so.
    """
    dataset = check_dataset(build(config.data))
    for line in dataset.warnings:
        console.warn(line)
    check_batch(config, len(dataset.train.labels))
    return dataset


def check_data(jobs: Sequence[Job]) -> None:
    """Load what the jobs train on, each kind of it once.

    Raises:
        ConfigError: with a line for each mistake.
    """
    configs = [job.config for job in jobs]
    mistakes = []
    for config in {json.dumps([c.data, c.trainer.batch_size]): c for c in configs}.values():
        try:
            load(config)
        except RequestError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))


def grid(config: DictConfig, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of Hydra's own sweeper; of two overrides of a key the later counts.

    Raises:
        RequestError: there is no job, or what is asked for needs a search.
    """
    given = [*(f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()), *overrides]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    parsed = {override.get_key_element(): override for override in parser.parse_overrides(given)}.values()
    axes = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_discrete_sweep()
        else [o.input_line or ""]
        for o in parsed
    ]
    if not all(axes):
        raise RequestError(f"the sweep has no runs: {' '.join(overrides)} matches no option and no value")
    for override in parsed:
        if override.is_interval_sweep():
            raise RequestError(f"{override.input_line} needs a search: hydra/sweeper=random or hydra/sweeper=optuna")
    if config.sweep.seeds != 1:
        raise RequestError(f"sweep.seeds is for a search; in a grid say 'seed=range({config.sweep.seeds})'")
    return [list(job) for job in itertools.product(*axes)]


def check_jobs(config_name: str, overrides: Sequence[Sequence[str]]) -> list[Job]:
    """Compose and check jobs, each given by its overrides.

    Raises:
        ConfigError: with a line for each mistake that all jobs share, and for each of one job behind its overrides.
    """
    jobs, mistakes = [], []
    shared = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set(overrides[0])
    before, told = HydraConfig.instance().cfg, time.monotonic()
    for number, job in enumerate(overrides):
        if time.monotonic() > told + TELL_SECONDS:
            told = time.monotonic()
            print(f"preflight: {number} of {len(overrides)} jobs checked", file=sys.stderr, flush=True)
        swept = " ".join(override for override in job if override not in shared)
        try:
            jobs.append(Job(check(_composed(config_name, job)), swept))
        except ConfigError as error:
            mistakes += [(swept, line) for line in str(error).splitlines()]
    HydraConfig.instance().cfg = before
    if mistakes:
        jobs_with = Counter(line for _, line in mistakes)
        said = [line if jobs_with[line] == len(overrides) else f"{swept}: {line}" for swept, line in mistakes]
        raise ConfigError("\n".join(dict.fromkeys(said)))
    return jobs


def _composed(config_name: str, job: Sequence[str]) -> DictConfig:
    try:
        composed = compose(config_name, list(job), return_hydra_config=True)
    except Exception as error:  # Hydra lets errors of several libraries and plain ValueErrors pass
        raise ConfigError(explain(error)) from error
    HydraConfig.instance().set_config(composed)
    with open_dict(composed):
        del composed["hydra"]
    return composed


def close_sweep(sweep: Sweep, status: str, extra: Path | None = None) -> bool:
    """Print the sweep's table, record it in the sweep's own run and end that; returns whether every job has a result.

    All of it comes from the store, for the jobs may have run in other processes and on other machines; besides what
    the folder `extra` has, if there is one. If that fails, the sweep's own run is ended all the same.
    """
    from mnist_exp import tracking

    with tracking.undisturbed():
        _open.remove(sweep)
        try:
            return _summarize(sweep, status, extra)
        except BaseException:
            with suppress(tracking.StoreError):  # what went wrong before matters more
                tracking.end_sweep(sweep.store, sweep.id, "FAILED" if status == "FINISHED" else status)
            raise


def _summarize(sweep: Sweep, status: str, extra: Path | None) -> bool:
    from mnist_exp import tracking

    tracking.end_dead_runs(sweep.store)  # of workers that were killed
    if status == "FINISHED":  # so have all jobs: what looks alive on another machine was killed there
        tracking.end_left_runs(sweep.store, sweep.id)
    runs = sorted(tracking.sweep_runs(sweep.store, sweep.id), key=lambda run: run.info.status == "FINISHED")
    last = {number: run for run in runs for number in tracking.job_numbers(run, sweep.id)}  # finished, or last tried
    rows = sorted((_row(sweep, number, last.get(number)) for number in range(len(sweep.jobs))), key=_rank)
    counts = _counts(rows)
    said = ", ".join(
        f"{count} {what.replace('_', ' ')}" for what, count in counts.items() if count or what == "finished"
    )
    title = f"sweep {sweep.id}: {said}"
    console.sweep_table(title, rows)
    print(f"\ncompare them:  {sweep.store.ui_command}\nthen open      {sweep.store.ui_link(sweep.id)}", flush=True)
    note = f"{title}, best by validation accuracy first\n\n{_markdown(rows, sweep.store.experiment_id)}"
    best = last[rows[0].job] if rows and rows[0].status in DONE else None
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), rows, redact(f"`{shlex.join(sys.argv[1:])}`\n\n{note}"))
        if extra is not None and extra.is_dir():
            shutil.copytree(extra, folder, dirs_exist_ok=True)
        tracking.close_sweep(sweep.store, sweep.id, status, best, counts, Path(folder), note)
    return all(row.status in DONE for row in rows)


def _row(sweep: Sweep, number: int, run: Any) -> console.Row:
    from mnist_exp import tracking

    job = sweep.jobs[number]
    if run is None:
        return console.Row(number, job.name, "NOT RUN", job.swept, None, None, None, "")
    given = _overrides(run.data.tags.get("overrides", "")) if sweep.searched else []
    trained = run.data.tags.get("sweep") == sweep.id and tracking.job_numbers(run, sweep.id)[0] == number
    return console.Row(
        job=number,
        name=run.info.run_name,
        status=run.info.status if trained else "SKIPPED",
        swept=" ".join(text for text in given if text.partition("=")[0] in sweep.searched) or job.swept,
        val_accuracy=run.data.metrics.get("final_val_accuracy"),
        test_accuracy=run.data.metrics.get("test_accuracy"),
        seconds=run.data.metrics.get("fit_seconds"),
        run_id=run.info.run_id,
    )


def _overrides(tag: str) -> list[str]:
    """The overrides that a run's tag tells; earlier versions wrote them with bare spaces between them."""
    try:
        return shlex.split(tag)
    except ValueError:  # a quotation mark of a value
        return tag.split()


def _rank(row: console.Row) -> tuple[int, float]:
    return 0 if row.status in DONE else 2 if row.status == "NOT RUN" else 1, -(row.val_accuracy or 0)


def _counts(rows: Sequence[console.Row]) -> dict[str, int]:
    """How many jobs came to what; one that was interrupted counts as failed."""
    kinds = {"FINISHED": "finished", "SKIPPED": "skipped", "NOT RUN": "not_run"}
    found = Counter(kinds.get(row.status, "failed") for row in rows)
    return {kind: found[kind] for kind in ("finished", "skipped", "failed", "not_run")}


def _write(folder: Path, rows: Sequence[console.Row], note: str) -> None:
    """Write the sweep's artifacts."""
    from mnist_exp.figures import run as plots  # not while mistakes are looked for: Matplotlib takes half a second

    (folder / "sweep.md").write_text(note, encoding="utf-8")
    with (folder / "sweep.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(console.Row._fields)
        writer.writerows(rows)
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row.status in DONE and row.val_accuracy is not None:
            apart = " ".join(part for part in row.swept.split() if not part.startswith("seed="))
            scores.setdefault(apart or "all", []).append(row.val_accuracy)
    if scores:
        plots.sweep(scores).savefig(folder / "sweep.png")


def _markdown(rows: Sequence[console.Row], experiment_id: str) -> str:
    lines = ["| run | status | swept | val_accuracy | test_accuracy | seconds |", "|---|---|---|--:|--:|--:|"]
    for row in rows:
        link = f"[{row.name}](#/experiments/{experiment_id}/runs/{row.run_id})"  # within MLflow's UI
        lines.append(
            "| " + " | ".join((link if row.run_id else row.name, row.status, row.swept, *console.figures(row))) + " |"
        )
    return "\n".join(lines) + "\n"
