"""Finished runs whose result a job can take."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mnist_exp import console
from mnist_exp.config import flatten, identity
from mnist_exp.experiment import Experiment


def take_finished(experiment: Experiment, store: Any, number: int) -> Mapping[str, float] | None:
    """Metrics of a finished run of the same identity, which becomes the sweep's n-th; None: the job has to train.

    One query a job, 10 ms however many runs the store has. So every job sees the runs that others finished meanwhile.
    """
    from mnist_exp import tracking  # MLflow takes a second to import: not for a mistake

    sweep = experiment.config.sweep
    assert sweep.id is not None
    alike = alike_runs(experiment, store)
    run = finished(experiment, alike)
    if run is not None:
        tracking.join_sweep(store, run, sweep.id, number)
        console.say(console.skipped_line(experiment.name, run.metrics, run.run_id))
        return run.metrics
    compared = next((run for run in alike if "identity.facts" in run.tags), None)
    if compared is not None:
        different = difference(json.loads(compared.tags["identity.facts"]), experiment.factors)
        console.say(console.again_line(experiment.name, compared.run_id, different), sys.stderr)
    return None


def alike_runs(experiment: Experiment, store: Any) -> list[Any]:
    """Finished runs of the same config, newest first; none if `sweep.skip_finished` is off."""
    from mnist_exp import tracking  # as above

    config = experiment.config
    if not config.sweep.skip_finished:
        return []
    needed = {"final_val_accuracy", "test_accuracy", *config.sweep.objective}  # a run of an older version may lack some
    return [
        run
        for run in tracking.finished_runs(store, identity(config, {}))
        if "pruned" not in run.tags and needed <= run.metrics.keys()
    ]


def finished(experiment: Experiment, alike: Sequence[Any]) -> Any:
    """The newest of the runs that has the experiment's identity, if there is one."""
    return next((run for run in alike if run.tags.get("identity") == experiment.identity), None)


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
