"""Runs as a store gives them to a sweep."""

from mnist_exp.tracking import RunInfo


def finished(name="x-s0", status="FINISHED", sweep_id="A", jobs="0", accuracy=0.9, **tags):
    metrics = {"final_val_accuracy": accuracy, "test_accuracy": accuracy - 0.01, "fit_seconds": 2.0}
    tags = {"sweep": sweep_id, "sweep.A": jobs, **tags}
    return RunInfo(f"id of {name}", name, status, False, 0.0, 2.0, {}, metrics, tags)
