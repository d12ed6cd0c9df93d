"""Trains a run again from its record and compares, says what differs between then and now, or restores the code."""

import difflib
import io
import json
import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mnist_exp import console, provenance
from mnist_exp.config import MAX_THREADS, PACKAGE, Config, params, targets
from mnist_exp.config.untrusted import read_config
from mnist_exp.data import Dataset
from mnist_exp.errors import EXIT_FAILED, RequestError, RunError, first_line
from mnist_exp.provenance import modules
from mnist_exp.reproduction import verdict
from mnist_exp.reproduction.record import Record, RecordError, from_capsule, from_folder, from_store
from mnist_exp.sweep.jobs import load, warn_unrecorded
from mnist_exp.sweep.startup import import_tensorflow

SHOWN_LINES, SHOWN_LETTERS = 200, 200  # of a difference in code
MAX_SOURCE = 2**17  # letters of a file that are compared: difflib takes minutes for a stranger's large file


def reproduce(arguments: Namespace) -> int:
    """Find the run, and restore its code, or say what differs, or train it again; returns the exit code.

    Raises:
        RequestError: it cannot be tried.
        RunError: the training failed.
    """
    then, own = _find(arguments.run, arguments.tracking_uri)
    if arguments.checkout is not None:
        _restore(then, arguments.checkout)
        return 0
    with _recorded_modules(then) if arguments.trust or own else nullcontext():
        return _again(then, arguments, trusted=arguments.trust or own)


def _commit(record: Record) -> str:
    code = record.environment().get("code")
    return record.tags.get("code.commit") or str(code.get("commit") if isinstance(code, dict) else "unknown")


def _again(then: Record, arguments: Namespace, *, trusted: bool) -> int:
    """Say what differs, or train again; returns the exit code."""
    config = read_config(then.files["config.yaml"], trusted=trusted)
    until = None if arguments.dry_run else _epochs(then, arguments.epochs)
    _as_then(config, then)
    if until is None:
        _dry_run(config, then)
        return 0
    dataset = _load(config)
    factors, _ = verdict.compare_factors(then, _here(config, dataset.fingerprint))
    console.say(f"{then.source}: {'this differs here' if factors else 'nothing that was recorded differs here'}")
    for line in verdict.factor_lines(factors):
        console.say(line)
    report = _train(config, dataset, then, until, arguments.tracking_uri)
    console.say("\n".join(report.lines()))
    accepted = {verdict.IDENTICAL} if arguments.strict else {verdict.IDENTICAL, verdict.EQUAL}
    return 0 if report.verdict in accepted else EXIT_FAILED


def _find(run: str, uri: str | None) -> tuple[Record, bool]:
    """The record, and whether it is of a run that this machine recorded in the user's own store."""
    path = Path(run)
    if path.suffix in (".yaml", ".yml"):
        return from_folder(path), False
    if path.suffix == ".zip":
        return from_capsule(path), False
    from mnist_exp import tracking

    found = from_store(run, uri)
    return found, tracking.is_own(uri, found.tags)


def _restore(then: Record, target: Path) -> None:
    """Write the code of a run, the user's own modules with it, into a new folder."""
    found, commit, diff = then.modules(), _commit(then), then.files.get("code.diff", b"")
    modules.check(found)
    if found and commit == "unknown":
        provenance.check_new(target)
        console.say(f"only the user's own modules are restored: the code of {PACKAGE.name} was not in a repository")
    else:
        provenance.restore(PACKAGE, commit, diff, target)
        console.say(f"restored commit {commit} with the run's uncommitted changes in {target}")
        for line in diff.decode(errors="replace").splitlines():
            if line.startswith(provenance.LEFT_OUT):
                console.say(line.removeprefix("# "))
    modules.write(found, target)
    if found:
        console.say(f"restored the user's own modules: {', '.join(map(str, map(modules.module_name, found)))}")


@contextmanager
def _recorded_modules(then: Record) -> Iterator[None]:
    """Make Python import the user's modules that the run recorded, instead of those on this machine."""
    found = then.modules()
    changed = modules.changed(found)
    if not changed:
        yield
        return
    modules.check(found)
    with tempfile.TemporaryDirectory() as scratch:
        modules.write(found, Path(scratch))
        sys.path.insert(0, scratch)
        try:
            if hidden := modules.changed(found):
                raise RequestError(f"{', '.join(hidden)}: the recorded module is hidden by one of this machine's")
            console.say(
                f"uses the modules that the run recorded; here these differ or are missing: {', '.join(changed)}"
            )
            yield
        finally:
            sys.path.remove(scratch)


def _epochs(then: Record, wanted: int | None) -> int:
    """How many epochs to compare."""
    rows = then.rows()
    recorded = max(rows, default=0)
    if recorded == 0:
        raise RecordError(
            f"{then.source}: nothing to compare with: it has no epoch in its metrics.jsonl; "
            "download that beside config.yaml, or name the run by its id"
        )
    losses = {"train_loss", "val_loss"}
    lacking = next((epoch for epoch in range(1, recorded + 1) if not losses <= rows.get(epoch, {}).keys()), None)
    if lacking is not None:
        raise RecordError(f"{then.source}: metrics.jsonl lacks the losses of epoch {lacking}")
    if wanted is not None and not 1 <= wanted <= recorded:
        raise RequestError(f"--epochs must be between 1 and the {recorded} that the run recorded, got {wanted}")
    return wanted or recorded


def _as_then(config: Config, then: Record) -> None:
    """Compute with the threads and the kind of device that the run computed with."""
    known = verdict.known(then)
    threads = known["threads"] or ""
    # Bits depend on the threads that TensorFlow is given, not on the cores they run on.
    if config.trainer.threads is None and threads.isdecimal() and 1 <= int(threads[:5]) <= MAX_THREADS:
        config.trainer.threads = int(threads)
    if known["device"] == "cpu" and config.trainer.devices == "auto":
        config.trainer.devices = "cpu"
    config.trainer.profile = config.trainer.checkpoint = False
    config.name = f"reproduction of {config.name}"


def _load(config: Config) -> Dataset:
    """The config's data; where its path is gone, wherever such data are on this machine: the fingerprint will tell."""
    path = config.data.get("path")
    if path is not None and not Path(path).expanduser().exists():
        named = Path(os.environ.get("MNIST_EXP_DATA") or ".")
        if config.data["_target_"] == "mnist_exp.data.mnist":
            config.data["path"] = None
        elif (beside := named / Path(path).name).exists():
            config.data["path"] = str(beside)
    return load(config)


def _dry_run(config: Config, then: Record) -> None:
    """Print what differs between then and now, as far as it is known before TensorFlow is asked."""
    try:
        fingerprint = _load(config).fingerprint
    except RequestError as error:
        console.say(f"the data cannot be compared: {error}")
        fingerprint = None
    factors, unrecorded = verdict.compare_factors(then, _here(config, fingerprint))
    console.say(f"{then.source}: {'this differs here' if factors else 'nothing that can be compared differs here'}")
    for line in verdict.factor_lines(factors, unrecorded):
        console.say(line)
    if any(factor.name.startswith(verdict.SOURCE) for factor in factors):
        for line in _code_changes(then):
            console.say(line)


def _here(config: Config, fingerprint: str | None) -> Record:
    """What would be recorded of a run here and now, without TensorFlow's part."""
    own = modules.user_code(targets(config))
    facts = {"data": fingerprint, "threads": config.trainer.threads or provenance.cores()}
    environment = provenance.environment(own.packages) | {
        "source": provenance.source_files(PACKAGE, own),
        "facts": facts | {"keras_config": provenance.keras_config()},
        "config": params(config),
    }
    files = {"config.yaml": b"", "environment.json": json.dumps(environment).encode()}
    return Record("here", None, None, files, {})


def _code_changes(then: Record) -> Iterator[str]:
    """The package's code from then to now, as lines of a diff; of a code that cannot be restored, why."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            old = provenance.restore(PACKAGE, _commit(then), then.files.get("code.diff", b""), Path(scratch, "then"))
        except RequestError as error:
            yield f"  its code cannot be shown: {error}"
            return
        names = {path.relative_to(folder) for folder in (old, PACKAGE) for path in folder.rglob("*.py")}
        lines = [line for name in sorted(names) for line in _diff(old / name, PACKAGE / name, str(name))]
    yield from lines[:SHOWN_LINES]
    if len(lines) > SHOWN_LINES:
        yield f"... and {len(lines) - SHOWN_LINES} lines more; --checkout restores the run's code"


def _diff(old: Path, new: Path, name: str) -> list[str]:
    texts = []
    for path in (old, new):
        with path.open(encoding="utf-8", errors="replace") if path.is_file() else io.StringIO() as stream:
            texts.append(stream.read(MAX_SOURCE).splitlines())
    then, now = texts
    lines = difflib.unified_diff(then, now, f"then/{name}", f"now/{name}", lineterm="")
    return [line[:SHOWN_LETTERS] for line in lines]


def _train(config: Config, dataset: Dataset, then: Record, until: int, uri: str | None) -> verdict.Report:
    from mnist_exp import tracking

    if config.init_from is not None:
        # It is needed, and missing in the store of whoever has a capsule.
        config.init_from = tracking.find_finished(uri, config.init_from)
    store = tracking.open_store(uri, config.tracking.experiment)
    warn_unrecorded([config])
    import_tensorflow()
    from mnist_exp.experiment import run_experiment
    from mnist_exp.sweep import preflight

    preflight.check(config, dataset)
    output = Path("outputs", time.strftime("%Y-%m-%d"), f"{time.strftime('%H-%M-%S')}-{time.time_ns() % 10**9:09}")
    output.mkdir(parents=True)
    tags = {"kind": "reproduction", "reproduces": then.run_id or then.source, "epochs_compared": str(until)}
    reports: list[verdict.Report] = []
    try:
        run_experiment(config, dataset, store, output, tags, [], _witness(then, until, store.uri, reports))
    except RunError:
        if not reports:  # else it failed as the original did, and was compared
            raise
    except (RequestError, OSError):
        raise
    except Exception as error:  # such as Keras' answer to an argument of a wrong type
        raise RunError(f"{type(error).__name__}: {first_line(error)} (the run has a traceback.txt)") from error
    return reports[0]


def _witness(
    then: Record, until: int, uri: str, reports: list[verdict.Report]
) -> Callable[[Any], AbstractContextManager[Any]]:
    """Compares a run with its original while it is made; the report goes to its artifacts and to `reports`."""
    rows = then.rows()

    @contextmanager
    def witness(log: Any) -> Iterator[Callable[[int, dict[str, float], str], bool]]:
        same = True

        def watch(epoch: int, values: dict[str, float], weights: str) -> bool:
            nonlocal same
            compared = verdict.compare(epoch, rows.get(epoch, {}), {**values, "weights": weights})
            if same and not compared.identical:
                console.say(f"no longer the same from {compared}", sys.stderr)
                same = False
            return epoch >= until

        try:
            yield watch
        except RunError:
            if 0 not in rows:  # nor did the original end well
                reports.append(_conclude(then, until, uri, log))
            raise
        reports.append(_conclude(then, until, uri, log))

    return witness


def _conclude(then: Record, until: int, uri: str, log: Any) -> verdict.Report:
    """Judge, and record the verdict with the run."""
    from mnist_exp.figures import run as plots

    log.flush()
    found = from_store(log.run_id, uri)
    files = {**found.files, "metrics.jsonl": log.record.read_bytes()}  # sent when the run is closed
    report = verdict.judge(then, found._replace(files=files), until)
    told = {"reproduces": then.run_id or then.source, **report.to_json()}
    (log.folder / "reproduction.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    title = f"{report.verdict}: {log.run_id[:8]} of {(then.run_id or then.source)[:8]}"
    plots.differences(report.distances(), title=title).savefig(log.folder / "reproduction.png")
    log.tags({"verdict": report.verdict})
    return report
