"""Trains a run again from its record and compares; or says what differs, restores the code, packs the run."""

import difflib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mnist_exp import console, provenance
from mnist_exp.config import MAX_THREADS, PACKAGE, Config, params, targets
from mnist_exp.config.untrusted import read_config
from mnist_exp.data import Dataset
from mnist_exp.errors import RequestError, RunError, first_line
from mnist_exp.experiment import prepare, run
from mnist_exp.provenance import modules
from mnist_exp.reproduction import verdict
from mnist_exp.reproduction.record import Record, RecordError, from_archive, from_folder, from_store, write_archive
from mnist_exp.sweep.jobs import load, warn_unrecorded
from mnist_exp.sweep.startup import device, import_tensorflow
from mnist_exp.training.checkpoint import digest

SHOWN_LINES, SHOWN_LETTERS = 200, 200  # of a difference in code
MAX_SOURCE = 2**17  # letters of a file that are compared: difflib takes minutes for a stranger's large file


def find(run: str, uri: str | None) -> tuple[Record, bool]:
    """Find a run's record by run id, name, path of a config.yaml, or path of an archive.

    Returns:
        The record, and whether this machine recorded the run in a store of the user's own.

    Raises:
        RequestError: there is no such run or file, or it is damaged.
    """
    path = Path(run)
    if path.suffix in (".yaml", ".yml"):
        return from_folder(path), False
    if path.suffix == ".zip":
        return from_archive(path), False
    from mnist_exp import tracking  # takes a second, so not for a mistyped option

    found = from_store(run, uri)
    return found, tracking.is_own(uri, found.tags)


def load_recorded(config: Config) -> Dataset:
    """The data of a run's config. If its path is gone, data of that name on this machine: its fingerprint may differ.

    Raises:
        RequestError: the data cannot be used.
    """
    path = config.data.get("path")
    if path is not None and not Path(path).expanduser().exists():
        named = Path(os.environ.get("MNIST_EXP_DATA") or ".")
        target = config.data["_target_"]
        if target.startswith("mnist_exp.data.") and target != "mnist_exp.data.file":
            config.data["path"] = None  # a published data set, which is looked for or downloaded
        elif (beside := named / Path(path).name).exists():
            config.data["path"] = str(beside)
    return load(config)


def restore_code(then: Record, target: Path) -> None:
    """Write the code of a run, the user's own modules included, into a new folder.

    Raises:
        RequestError: the folder exists, or the code was not recorded well enough to restore it.
    """
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


def dry_run(then: Record, *, trusted: bool) -> None:
    """Print what differs between then and now, as far as that is known without TensorFlow."""
    with _config(then, trusted=trusted) as config:
        try:
            fingerprint = load_recorded(config).fingerprint
        except RequestError as error:
            console.say(f"the data cannot be compared: {error}")
            fingerprint = None
        factors, unrecorded = verdict.compare_factors(then, _here(config, fingerprint))
    console.say(f"{then.source}: {'this differs here' if factors else 'nothing that can be compared differs here'}")
    changes = _code_changes(then) if any(factor.name.startswith(verdict.SOURCE) for factor in factors) else ()
    for line in (*verdict.factor_lines(factors, unrecorded), *changes):
        console.say(line)


def train_again(then: Record, epochs: int | None, uri: str | None, *, trusted: bool) -> verdict.Report:
    """Train a run again, as a run with the tag kind=reproduction, and compare it with the original.

    Args:
        then: the record of the original.
        epochs: how many to train and compare; None for all that were recorded.
        uri: the tracking store.
        trusted: whether the config may call code that is neither this package's nor Keras'.

    Raises:
        RequestError: it cannot be tried.
        RunError: the training failed.
    """
    with _config(then, trusted=trusted) as config:
        until = _epochs_to_compare(then, epochs)
        dataset = load_recorded(config)
        factors, _ = verdict.compare_factors(then, _here(config, dataset.fingerprint))
        console.say(f"{then.source}: {'this differs here' if factors else 'nothing that was recorded differs here'}")
        for line in verdict.factor_lines(factors):
            console.say(line)
        return _train(config, dataset, then, until, uri)


def pack(run: str, uri: str | None, out: Path) -> str:
    """Pack the record and the weights of a run in a store into one zip; returns a line that describes it.

    Raises:
        RequestError: there is no such run, it has no model, or `out` cannot be written.
    """
    record = from_store(run, uri)
    from mnist_exp import tracking

    import_tensorflow()
    from mnist_exp.models import saved_weights

    with tempfile.TemporaryDirectory() as scratch:
        weights = saved_weights(tracking.download(uri, str(record.run_id), "saved_model", Path(scratch)))
    write_archive(record, weights, out)
    epochs = [step for step, row in record.rows().items() if row.get("weights") == digest(weights)]
    which = f"those after epoch {epochs[0]}" if epochs else "those of no epoch: averaged at the end"
    return f"{out}: {record.source}, {len(weights)} weights ({which})"


@contextmanager
def _config(then: Record, *, trusted: bool) -> Iterator[Config]:
    """The run's config, set to compute as the run did; while it is in use, imports find the recorded modules."""
    with _recorded_modules(then) if trusted else nullcontext():
        config, recorded = read_config(then.files["config.yaml"], trusted=trusted), verdict.known(then)
        threads = recorded["threads"] or ""
        # The bits depend on the threads that TensorFlow is given, not on the cores they run on.
        if config.trainer.threads is None and threads.isdecimal() and 1 <= int(threads[:5]) <= MAX_THREADS:
            config.trainer.threads = int(threads)
        if recorded["device"] == "cpu" and config.trainer.devices == "auto":
            config.trainer.devices = "cpu"
        config.trainer.profile = config.trainer.checkpoint = False
        config.name = f"reproduction of {config.name}"
        yield config


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
                raise RequestError(f"{', '.join(hidden)}: a module of this machine hides the recorded one")
            console.say(
                f"uses the modules that the run recorded; here these differ or are missing: {', '.join(changed)}"
            )
            yield
        finally:
            sys.path.remove(scratch)


def _commit(record: Record) -> str:
    code = record.environment().get("code")
    return record.tags.get("code.commit") or str(code.get("commit") if isinstance(code, dict) else "unknown")


def _epochs_to_compare(then: Record, wanted: int | None) -> int:
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


def _here(config: Config, fingerprint: str | None) -> Record:
    """The record that a run would have here and now, without the entries that need TensorFlow."""
    own = modules.user_code(targets(config))
    facts = {"data": fingerprint, "threads": config.trainer.threads or provenance.cores()}
    environment = provenance.environment_record(own.packages) | {
        "source": provenance.source_files(PACKAGE, own),
        "source_trees": provenance.source_trees(PACKAGE, own),
        "facts": facts | {"keras_config": provenance.keras_config()},
        "config": params(config),
    }
    files = {"config.yaml": b"", "environment.json": json.dumps(environment).encode()}
    return Record("here", None, None, files, {})


def _code_changes(then: Record) -> Iterator[str]:
    """The package's code from then to now as lines of a diff, or the reason why it cannot be restored."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            old = provenance.restore(PACKAGE, _commit(then), then.files.get("code.diff", b""), Path(scratch, "then"))
        except RequestError as error:
            yield f"  its code cannot be shown: {error}"
            return
        names = {path.relative_to(folder) for folder in (old, PACKAGE) for path in folder.rglob("*.py")}
        lines = [
            line[:SHOWN_LETTERS]
            for name in sorted(names)
            for line in difflib.unified_diff(
                _lines(old / name), _lines(PACKAGE / name), f"then/{name}", f"now/{name}", lineterm=""
            )
        ]
    yield from lines[:SHOWN_LINES]
    if len(lines) > SHOWN_LINES:
        yield f"... and {len(lines) - SHOWN_LINES} lines more; --checkout restores the run's code"


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(MAX_SOURCE).splitlines()


def _train(config: Config, dataset: Dataset, then: Record, until: int, uri: str | None) -> verdict.Report:
    from mnist_exp import tracking

    if config.init_from is not None:
        # Fails here if the store lacks that run, as that of someone who was sent an archive may.
        config.init_from = tracking.find_finished(uri, config.init_from)
    store = tracking.open_store(uri, config.tracking.experiment)
    experiment = prepare(config, dataset, device(config.trainer))
    warn_unrecorded(experiment.user_code)
    import_tensorflow()
    from mnist_exp.sweep import preflight

    preflight.check(config, dataset)
    output = Path("outputs", time.strftime("%Y-%m-%d"), f"{time.strftime('%H-%M-%S')}-{time.time_ns() % 10**9:09}")
    output.mkdir(parents=True)
    tags = {"kind": "reproduction", "reproduces": then.run_id or then.source, "epochs_compared": str(until)}
    reports: list[verdict.Report] = []
    try:
        run(experiment, store, output, tags=tags, overrides=[], follow=_comparing(then, until, store.uri, reports))
    except RunError:
        if not reports:  # else the original failed, too, and the two are compared
            raise
    except (RequestError, OSError):
        raise
    except Exception as error:  # such as Keras' answer to an argument of a wrong type
        raise RunError(f"{type(error).__name__}: {first_line(error)} (the run has a traceback.txt)") from error
    return reports[0]


def _comparing(
    then: Record, until: int, uri: str, reports: list[verdict.Report]
) -> Callable[[Any], AbstractContextManager[Any]]:
    """Makes an epoch callback that prints the first difference and ends the training after epoch `until`.

    When the training is over, the report goes into the run's artifacts and to `reports`.
    """
    rows = then.rows()

    @contextmanager
    def comparing(log: Any) -> Iterator[Callable[[int, dict[str, float], str], bool]]:
        same = True

        def on_epoch(epoch: int, values: dict[str, float], weights: str) -> bool:
            nonlocal same
            compared = verdict.compare(epoch, rows.get(epoch, {}), {**values, "weights": weights})
            if same and not compared.identical:
                console.say(f"no longer the same from {compared}", sys.stderr)
                same = False
            return epoch >= until

        try:
            yield on_epoch
        except RunError:
            if 0 not in rows:  # the original did not end well either
                reports.append(_conclude(then, until, uri, log))
            raise
        reports.append(_conclude(then, until, uri, log))

    return comparing


def _conclude(then: Record, until: int, uri: str, log: Any) -> verdict.Report:
    """Judge, and record the verdict with the run."""
    from mnist_exp.figures import run as plots

    log.flush()
    found = from_store(log.run_id, uri)
    files = {**found.files, "metrics.jsonl": log.record.read_bytes()}  # the store gets it when the run is closed
    report = verdict.judge(then, found._replace(files=files), until)
    content = {"reproduces": then.run_id or then.source, **report.to_json()}
    (log.folder / "reproduction.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    title = f"{report.verdict}: {log.run_id[:8]} of {(then.run_id or then.source)[:8]}"
    plots.differences(report.distances(), title=title).savefig(log.folder / "reproduction.png")
    log.tags({"verdict": report.verdict})
    return report
