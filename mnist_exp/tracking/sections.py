"""The sections of MLflow's charts: it groups metrics by the part of their names before a slash.

Losses and scores have no section, so that they come first. Only MLflow has these names: everywhere else a metric has
its plain one.
"""

SECTIONS = {
    **dict.fromkeys(("epoch_seconds", "images_per_second", "fit_seconds", "compile_seconds"), "time"),
    **dict.fromkeys(("parameters", "best_epoch", "best_val_accuracy_epoch", "best_val_loss_epoch"), "run"),
}


def in_section(metric: str) -> str:
    """The name of a metric in MLflow, such as `time/fit_seconds`."""
    section = "time" if metric.startswith("seconds_to_") else SECTIONS.get(metric)
    return metric if section is None else f"{section}/{metric}"


def plain(name: str) -> str:
    """The metric that has a name in MLflow. Earlier versions had no sections."""
    metric = name.rpartition("/")[2]
    return metric if in_section(metric) == name else name
