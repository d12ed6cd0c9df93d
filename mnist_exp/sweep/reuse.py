"""Finished runs whose result a job can take."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from mnist_exp import console, provenance
from mnist_exp.config import PACKAGE, Config, flatten, identity, run_name, targets
from mnist_exp.data import Dataset
from mnist_exp.provenance.modules import user_code
from mnist_exp.sweep.startup import import_tensorflow


def finished_before(config: Config, dataset: Dataset, store: Any, number: int) -> Mapping[str, float] | None:
    """Metrics of a finished run of the same identity, which becomes the sweep's n-th; None: the job has to train.

    One query a job, 10 ms however many runs the store has: so every job sees what others finished meanwhile.
    """
    from mnist_exp import tracking

    assert config.sweep.id is not None
    name = run_name(config)
    run = _finished(config, dataset, store, name)
    if run is None:
        return None
    tracking.join_sweep(store, run, config.sweep.id, number)
    console.say(console.skipped_line(name, run.metrics, run.run_id))
    return run.metrics


def _finished(config: Config, dataset: Dataset, store: Any, name: str | None = None) -> Any:
    """The latest finished run of the same identity; with a name to say it under, says why there is none of many."""
    from mnist_exp import tracking

    if not config.sweep.skip_finished:
        return None
    threads = config.trainer.threads or provenance.cores()
    device = _device(config.trainer.devices, threads)
    facts = provenance.environment_factors(PACKAGE, user_code(targets(config)), dataset.fingerprint, threads, device)
    wanted = identity(config, facts)
    needed = {"final_val_accuracy", "test_accuracy", *config.sweep.objective}  # a run of an older version may lack some
    alike = [
        run
        for run in tracking.finished_runs(store, identity(config, {}))
        if "pruned" not in run.tags and needed <= run.metrics.keys()
    ]
    found = next((run for run in alike if run.tags.get("identity") == wanted), None)
    compared = next((run for run in alike if "identity.facts" in run.tags), None)
    if compared is not None and found is None and name is not None:
        different = difference(json.loads(compared.tags["identity.facts"]), facts)
        console.say(console.again_line(name, compared.run_id, different), sys.stderr)
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
