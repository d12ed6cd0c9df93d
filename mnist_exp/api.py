"""Trains and reads runs from Python. The functions and classes are those of `import mnist_exp`.

A mistake raises `RequestError` with the line that the command prints. docs/notebook.md has examples.
"""

import io
import json
import math
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from mnist_exp import job, provenance
from mnist_exp.config import Config, by_group, closest_option, current_params
from mnist_exp.config.untrusted import read_config
from mnist_exp.errors import EXIT_INVALID, RequestError, RunError
from mnist_exp.scores import higher_is_better
from mnist_exp.sweep.startup import import_tensorflow

if TYPE_CHECKING:
    import keras
    import pandas as pd
    from omegaconf import DictConfig
    from PIL.Image import Image

    from mnist_exp.analysis.predictions import Predictions
    from mnist_exp.analysis.report import Block
    from mnist_exp.data import Dataset
    from mnist_exp.tracking import RunInfo, Store

warnings.filterwarnings("ignore", "IProgress not found")  # by MLflow's import in a notebook without ipywidgets
WORDS = {"None": None, "True": True, "False": False}


@dataclass(frozen=True, repr=False)
class Run:
    """A recorded run."""

    stored: "RunInfo"  # id, name, status, tags, and the config's values as texts
    store: "Store"

    @property
    def id(self) -> str:
        """MLflow's id of the run."""
        return self.stored.run_id

    @property
    def name(self) -> str:
        """The run's name."""
        return self.stored.name

    @property
    def status(self) -> str:
        """RUNNING, FINISHED, FAILED or KILLED."""
        return self.stored.status

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last value of each metric by its name, such as `val_accuracy`."""
        return self.stored.metrics

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config's values by their keys, such as `optimizer.learning_rate`, and each group's option by its name."""
        logged = current_params(self.stored.params)
        found = {key: _value(text) for key, text in logged.items() if not key.endswith("._target_")}
        nodes = by_group(logged)
        for group in ("model", "loss", "optimizer", "schedule", "data"):
            option = closest_option(group, frozenset(nodes[group].items()))
            found[group] = option or nodes[group].get("_target_", "").rpartition(".")[2]
        return found

    @cached_property
    def config(self) -> "DictConfig":
        """The run's whole config, for example `run.config.trainer.epochs`.

        Raises:
            RequestError: the run has none, or it is a stranger's and names functions that are not allowed.
        """
        from omegaconf import OmegaConf

        return OmegaConf.create(asdict(self._recorded_config()))

    def _recorded_config(self) -> Config:
        from mnist_exp import tracking

        trusted = tracking.is_own(self.store.uri, self.stored.tags)
        return read_config(self._file("config.yaml"), trusted=trusted)

    def curves(self) -> "pd.DataFrame":
        """The metrics of each epoch, with `step`, the epoch's number from 1, as index."""
        import pandas as pd

        from mnist_exp import tracking

        curves = {name: tracking.curve(self.store.uri, self.id, name) for name in self.metrics}
        frame = pd.DataFrame(curves).rename_axis("step").sort_index()
        return frame[frame.index > 0].dropna(axis="columns", how="all")  # step 0: metrics of the whole run

    def predictions(self) -> "Predictions":
        """The logits of the test images, float32 (n, classes), and their true classes, (n,), as `logits` and `labels`.

        Raises:
            RequestError: the run has none, because it did not finish.
        """
        from mnist_exp.analysis import predictions

        found = predictions.load(self.store.uri, self.id)
        if found is None:
            raise RequestError(f"run {self.id} has no valid artifact {predictions.FILE}")
        return found

    def dataset(self) -> "Dataset":
        """The data set that the run was trained on: `train`, `validation` and `test`, each with `images` and `labels`.

        Raises:
            RequestError: it is not on this machine, or has changed since.
        """
        from mnist_exp.reproduction import replay

        found = replay.load_recorded(self._recorded_config())
        if found.fingerprint != (then := self.stored.tags["data.fingerprint"]):
            raise RequestError(f"{found.source} has changed: its fingerprint is {found.fingerprint}, was {then}")
        return found

    def figure(self, name: str) -> "Image":
        """A figure of the run, such as `curves`, `confusion_matrix`, `mistakes` or `samples`; a notebook shows it.

        Raises:
            RequestError: the run has no such figure.
        """
        from PIL import Image

        return Image.open(io.BytesIO(self._file(f"{name}.png")))

    def _file(self, name: str) -> bytes:
        from mnist_exp import tracking

        found = tracking.read_files(self.store.uri, self.id, [name])
        if name not in found:
            others = (
                path for path in tracking.artifact_names(self.store.uri, self.id) if path.endswith(Path(name).suffix)
            )
            raise RequestError(f"run {self.id} has no artifact {name}; it has: {', '.join(others) or 'none'}")
        return found[name]

    def model(self) -> "keras.Model":
        """The trained model: uint8 images (n, height, width, channels) to logits (n, classes).

        It is built from the config and gets the run's weights. It has Keras' `predict` and `summary`.

        Raises:
            RequestError: the run has no weights, or its data, which give the shape, are not on this machine.
        """
        from mnist_exp.reproduction import replay

        config = self._recorded_config()
        dataset = replay.load_recorded(config)
        import_tensorflow()
        from mnist_exp import builders
        from mnist_exp.experiment import take_weights

        model = builders.build_model(config.model, dataset.image_shape, dataset.num_classes)
        take_weights(model, self.id, self.store)
        return model

    def __repr__(self) -> str:
        scores = [f"{key}={self.metrics[key]:.4f}" for key in ("val_accuracy", "test_accuracy") if key in self.metrics]
        return f"Run({', '.join([self.name, self.status, *scores, self.id])})"


class Runs(Sequence[Run]):
    """Recorded runs in the order of their sweep, or else the newest first."""

    def __init__(self, found: Iterable[Run]) -> None:
        self._runs = list(found)

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, index: int) -> Run: ...

    @overload
    def __getitem__(self, index: slice) -> "Runs": ...

    def __getitem__(self, index: int | slice) -> "Run | Runs":
        return Runs(self._runs[index]) if isinstance(index, slice) else self._runs[index]

    def __repr__(self) -> str:
        more = ["  ..."] if len(self) > 10 else []
        return "\n".join([f"{len(self)} run{'s' * (len(self) != 1)}", *(f"  {run}" for run in self._runs[:10]), *more])

    def frame(self) -> "pd.DataFrame":
        """A row for each run, with its id as index.

        The columns are name, status and start of the run, then its metrics and the keys of its config by their own
        names, such as `val_accuracy`, `optimizer.learning_rate` and `seed`. A list in the config becomes a tuple.
        """
        import pandas as pd

        rows = [
            {"name": "", "status": run.status, "started": run.stored.start_time}
            | {**run.metrics, **run.settings, "name": run.name}  # the config's name is a part of the run's
            for run in self
        ]
        frame = pd.DataFrame(rows, pd.Index([run.id for run in self], name="run_id"))
        if rows:
            frame["started"] = pd.to_datetime(frame["started"].round(3), unit="s", utc=True)
        return frame

    def curves(self) -> "pd.DataFrame":
        """A row for each run and epoch: `run` (its name), `run_id`, `step` (the epoch, from 1), and the metrics."""
        import pandas as pd

        found = [run.curves().reset_index().assign(run=run.name, run_id=run.id) for run in self]
        frame = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["run", "run_id", "step"])
        return frame[["run", "run_id", "step", *frame.columns.drop(["run", "run_id", "step"])]]

    def best(self, metric: str = "final_val_accuracy") -> Run:
        """The finished run with the best value of a metric.

        Raises:
            RequestError: the metric is one of the test set, or no finished run has it.
        """
        if metric.startswith("test_"):
            raise RequestError(
                f"metric must not be a test metric, because the test set would become a validation set; got {metric!r}"
            )
        fit = [run for run in self if run.status == "FINISHED" and math.isfinite(run.metrics.get(metric, math.nan))]
        if not fit:
            known = sorted({name for run in self for name in run.metrics if not name.startswith("test_")})
            raise RequestError(f"no finished run has the metric {metric!r}; metrics: {', '.join(known) or 'none'}")
        return (max if higher_is_better(metric) else min)(fit, key=lambda run: run.metrics[metric])

    def compare(
        self, by: str | None = None, *, effects: bool = False, metric: str = "final_val_accuracy", top: int = 10
    ) -> "Comparison":
        """Compares the runs over their seeds, as `python -m mnist_exp.compare` does.

        Args:
            by: a setting whose values to compare, such as `optimizer`.
            effects: whether to say which settings mattered.
            metric: ranks and tests the rows.
            top: rows to show of each table.

        Raises:
            RequestError: the metric is one of the test set, no run has it, or `by` does not vary.
        """
        from mnist_exp import tracking
        from mnist_exp.analysis import leaderboard, predictions, report

        if not self:
            raise RequestError("there are no runs to compare")
        store = self[0].store
        records, choice = tracking.search_runs(store), leaderboard.Choice(everything=True)
        board = leaderboard.board(records, choice, metric, {run.id for run in self})
        compared = report.examine(board, by, top, predictions.of_rows(store.uri), every_setting=effects)
        return Comparison(tuple(report.blocks(board, compared, top)))


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare` prints. A notebook shows it with formatted tables; `print` gives the command's text."""

    document: "Sequence[Block]"

    def __repr__(self) -> str:
        from mnist_exp.analysis import render

        return render.as_text(self.document)

    def _repr_markdown_(self) -> str:
        from mnist_exp.analysis import render

        return render.as_markdown(self.document)


def train(*overrides: str) -> Run:
    """Trains one run, as `python -m mnist_exp.train` does.

    Args:
        *overrides: as on the command line, such as `model=cnn` and `trainer.epochs=3`.

    Raises:
        RequestError: an override, the data or the store is not valid.
        RunError: the training failed, for example because the loss is not finite.
    """
    from mnist_exp import tracking

    try:
        with tracking.defaults_kept():
            composed = job.compose(overrides)
            prepared = job.prepare_job(composed.config, composed.overrides)
            import_tensorflow()
            from mnist_exp.training import devices

            composed.output.mkdir(parents=True)
            with devices.settings_kept():
                result = job.run_job(prepared, composed.output)
            assert result is not None  # only a sweep stops its jobs
            return Run(tracking.find_run(prepared.store.uri, result.run_id), prepared.store)
    except RequestError as error:
        raise error.with_traceback(None) from None  # else a notebook shows a hundred lines of Hydra for a mistype


def sweep(*overrides: str) -> Runs:
    """Trains a sweep, as `python -m mnist_exp.train -m` does, and prints what the command prints.

    The command runs in a process of its own, so that a sweep keeps no memory, and Ctrl-C closes its runs, also in a
    notebook. A `_target_` of your own must therefore be in a file, not in a cell.

    Args:
        *overrides: as on the command line, such as `model=mlp,cnn` and `seed=range(3)`.

    Raises:
        RequestError: an override, the data or the store is not valid.
        RunError: not all runs finished.
    """
    from mnist_exp import tracking

    if unlike := [text for text in overrides if text.startswith("-")]:
        raise RequestError(f"{unlike[0]!r} is not of the form key=value")
    tracked = job.compose([text for text in overrides if text.startswith("tracking")]).config.tracking
    code, identifier, errors = _command("-m", "mnist_exp.train", "-m", *overrides)
    if code == EXIT_INVALID:
        raise RequestError("\n".join(errors))
    store = tracking.find_store(tracked.uri, tracked.experiment)
    own = tracking.sweep_of(store, identifier)
    found = Runs([]) if own is None else _runs(store, own)
    if code:
        raise RunError(errors[0] if errors else f"the sweep ended with exit code {code}, see the output above")
    return found


def _command(*arguments: str) -> tuple[int, str, list[str]]:
    """Runs Python in a process of its own and prints its output as it comes.

    Returns:
        The exit code, the identifier of the process, and its lines that begin with `error: `, without that.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # it imports what this process would import
        "TTY_COMPATIBLE": "0",  # a notebook promises a terminal, but the bars of Rich would be lines of escape codes
    }
    errors = []
    with subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as child:
        identifier = provenance.process(child.pid)
        assert child.stdout is not None
        try:
            for line in child.stdout:
                print(line, end="", flush=True)
                if line.startswith("error: "):
                    errors.append(line.removeprefix("error: ").rstrip())
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            print(child.communicate()[0], end="", flush=True)
            raise
    return child.returncode, identifier, errors


def runs(
    sweep: str | None = None, *, tracking_uri: str | None = None, experiment: str | None = None, **settings: Any
) -> Runs:
    """Finds recorded runs, by default all of the experiment.

    Args:
        sweep: `latest`, or a sweep's id.
        tracking_uri: the store; None means MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in this directory.
        experiment: name of the MLflow experiment; None means MLFLOW_EXPERIMENT_NAME, else `mnist_exp`.
        **settings: keeps the runs whose config has these values, such as `model="mlp"`, `seed=0`, or
            `**{"optimizer.learning_rate": 0.01}`.

    Raises:
        RequestError: there is no such store, experiment or sweep, or no run has such a key.
    """
    from mnist_exp import tracking

    found = _runs(tracking.find_store(tracking_uri, experiment or tracking.default_experiment()), sweep)
    known = {key for run in found for key in run.settings} if settings else set()
    if found and (unknown := settings.keys() - known):
        raise RequestError(f"{min(unknown)!r} is not a key of these runs; their keys: {', '.join(sorted(known))}")
    wanted = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return Runs(run for run in found if all(run.settings.get(key) == value for key, value in wanted.items()))


def _runs(store: "Store", sweep: str | None) -> Runs:
    from mnist_exp import tracking
    from mnist_exp.analysis import leaderboard

    records = tracking.search_runs(store, deleted=False)
    if sweep == "latest" and not any("sweep" in run.tags for run in records):
        raise RequestError(f"the experiment {store.experiment} has no sweep")
    choice = leaderboard.Choice(None if sweep == "latest" else sweep, everything=sweep is None)
    chosen, _ = leaderboard.choose(records, choice)
    kept = [Run(run, store) for run in chosen if run.tags.get("kind") == "run"]
    return Runs(kept if sweep is None else reversed(kept))


def _value(text: str) -> Any:
    """The value of a param, which MLflow stores as text."""
    if text in WORDS:
        return WORDS[text]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else text if isinstance(value, dict) else value
