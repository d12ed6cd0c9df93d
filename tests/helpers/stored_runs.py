"""Runs as MLflow gives them."""

from types import SimpleNamespace


def finished(name="x-s0", status="FINISHED", sweep_id="A", jobs="0", accuracy=0.9, **tags):
    metrics = {"final_val_accuracy": accuracy, "test_accuracy": accuracy - 0.01, "fit_seconds": 2.0}
    return SimpleNamespace(
        info=SimpleNamespace(run_id=f"id of {name}", run_name=name, status=status),
        data=SimpleNamespace(tags={"sweep": sweep_id, "sweep.A": jobs, **tags}, metrics=metrics),
    )
