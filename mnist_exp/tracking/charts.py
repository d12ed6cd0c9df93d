"""The order of the charts in MLflow's UI.

The UI sorts charts by name and groups metrics by the part of their names before a slash. It shows the section `system/`
last, and on a run it has a page of its own. So times and facts about a run are there.
"""

import base64
import json
import zlib

SYSTEM = {
    *("epoch_seconds", "images_per_second", "fit_seconds", "compile_seconds"),
    *("parameters", "best_epoch", "best_val_accuracy_epoch", "best_val_loss_epoch"),
}
# The charts of a sweep, by section: lines over the epochs, or one bar a run.
SECTIONS = (
    ("Validation and training", "LINE", ("val_accuracy", "train_accuracy", "val_loss", "train_loss")),
    ("Test", "BAR", ("test_accuracy", "test_loss")),
)
VIEW = "mlflow.sharedViewState."  # an experiment's tag, in which the UI keeps a view that was shared by a link


def in_section(metric: str) -> str:
    """The name of a metric in MLflow, such as `system/fit_seconds`. Everywhere else it has its plain name."""
    return f"system/{metric}" if metric in SYSTEM or metric.startswith("seconds_to_") else metric


def plain(name: str) -> str:
    """The plain name of a metric, given its name in MLflow, which in runs of earlier versions is the plain one too."""
    metric = name.removeprefix("system/")
    return metric if in_section(metric) == name else name


def sweep_view(runs: str) -> str:
    """The state of the UI's page that shows the runs of a filter, with validation and training first.

    `tests/contracts` checks the names in it against the UI's own program.
    """
    line = {
        **{"runsCountToCompare": 100, "xAxisKey": "step", "yAxisKey": "metric", "scaleType": "linear", "range": {}},
        "lineSmoothness": 0,  # else the UI draws other values than those logged
    }
    charts, sections = [], []
    for title, kind, metrics in SECTIONS:
        sections.append({"uuid": title, "name": title, "display": True, "isReordered": True, "columns": 2})
        for metric in metrics:
            place = {"uuid": metric, "metricSectionId": title, "deleted": False, "isGenerated": False}
            charts.append({**place, **line, "type": kind, "metricKey": metric, "selectedMetricKeys": [metric]})
    state = {
        "searchFilter": runs,
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,  # keeps the order of the sections
    }
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
