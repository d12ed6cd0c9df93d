"""Finds finished runs with the identity of a job, and names what distinguishes runs with the same config."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mnist_exp import console
from mnist_exp.config import flatten
from mnist_exp.experiment import Experiment
from mnist_exp.figures.style import run_color

if TYPE_CHECKING:
    from mnist_exp.tracking import RunInfo


def take_finished(experiment: Experiment, store: Any, number: int) -> "RunInfo | None":
    """Makes a finished run with this identity the result of the sweep's n-th job.

    Each job asks the store anew, which takes 3 ms in a file, because other jobs finish meanwhile.

    Returns:
        The run; None if there is no such run, so that the job must train.
    """
    from mnist_exp import tracking  # MLflow takes a second to import: not for a mistake

    sweep = experiment.config.sweep
    assert sweep.id is not None
    alike = alike_runs(experiment, store)
    run = finished(experiment, alike)
    if run is not None:
        tracking.join_sweep(store, run, sweep.id, number, experiment.name, run_color(number))
        console.run_line(experiment.name, run.metrics, "reused")
        return run
    return None


def alike_runs(experiment: Experiment, store: Any) -> "list[RunInfo]":
    """Finished runs of the same config, newest first; none if `sweep.skip_finished` is off."""
    from mnist_exp import tracking  # as above

    sweep = experiment.config.sweep
    if not sweep.skip_finished:
        return []
    needed = {"final_val_accuracy", "test_accuracy", *sweep.objective}  # a run of an older version may lack some
    return [
        run
        for run in tracking.finished_runs(store, experiment.config_identity)
        if "pruned" not in run.tags and needed <= run.metrics.keys()
    ]


def finished(experiment: Experiment, alike: "Sequence[RunInfo]") -> "RunInfo | None":
    """The newest of the runs that has the experiment's identity, if there is one."""
    return next((run for run in alike if run.tags.get("identity") == experiment.identity), None)


def outdated(experiment: Experiment, alike: Sequence[Any]) -> str | None:
    """Why runs of the same config are not reused, by the newest that tells; None if there is none."""
    facts = next((run.tags["identity.facts"] for run in alike if "identity.facts" in run.tags), None)
    return None if facts is None else difference(json.loads(facts), experiment.factors)


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Names the environment factors that distinguish two runs, such as `not the same code, threads (1, now 2)`.

    A factor that an earlier version did not record may have been the same: it is named as `no record of`.

    Returns:
        The text; empty if no factor differs.
    """
    unknown = sorted(now.keys() - before.keys())
    recorded = {key: value for key, value in now.items() if key in before}
    old, new = ({key: value for key, value in flatten(tree).items() if value != {}} for tree in (before, recorded))
    changed = []
    for key in old | new:
        if old.get(key) != new.get(key):
            values = "" if key in ("source", "data") else f" ({old.get(key, 'none')}, now {new.get(key, 'none')})"
            changed.append(("code" if key == "source" else key.removeprefix("versions.")) + values)
    parts = [f"not the same {', '.join(changed)}"] if changed else []
    return ", and ".join(parts + ([f"no record of {', '.join(unknown)}"] if unknown else []))
