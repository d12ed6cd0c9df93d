"""`python -m benchmarks.results [URI ...]`: results of the presets, from the runs in tracking stores.

A run counts if its config is the preset's, except for keys that change no result. So a number without a run cannot
stand in the tables. They go to standard output and to benchmarks/results/. The experiment of each store is `mnist_exp`.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.speed import RESULTS
from mnist_exp import tracking
from mnist_exp.analysis.statistics import difference, summarise
from mnist_exp.config.identity import identity
from mnist_exp.job import compose
from mnist_exp.tracking import RunInfo

EXPERIMENT = "mnist_exp"
SEEDS = range(5)


class Preset(NamedTuple):
    """A preset and its published test accuracy, or our aim if none was published."""

    name: str
    published: float | None = None
    aim: float | None = None


PRESETS = (
    Preset("linear", published=0.926),
    Preset("workshop_mlp", published=0.977),
    Preset("wide_mlp", published=0.98),
    Preset("dropout_mlp", published=0.98),
    Preset("residual_mlp", aim=0.97),
    Preset("residual_mlp_plus"),
    Preset("speedrun", published=0.9904),
    Preset("mlp_record", published=0.9920),
    Preset("mlp_elastic", published=0.9930),
    Preset("cnn_record", aim=0.996),
    Preset("fashion_cnn", published=0.925),
)
# What the author of `residual_mlp` lists as improvements, each measured alone. `affine` is one of the two augmentations
# with the best means in `augmentation_study`.
BASE = ("experiment=residual_mlp", "data.validation=5000")
ADDITIONS = (
    "optimizer=adam",
    "optimizer=rmsprop",
    "schedule=cosine",
    "model.dropout=0.1",
    "model.batch_norm=true",
    "augment=affine",
)


def runs_of(stores: Sequence[tracking.Store], *overrides: str) -> dict[int, RunInfo]:
    """The newest finished run of each seed that has one."""
    found = {}
    for seed in SEEDS:
        config = compose([*overrides, f"seed={seed}"]).config
        runs = [run for store in stores for run in tracking.finished_runs(store, identity(config, {}))]
        if runs:
            found[seed] = max(runs, key=lambda run: run.start_time)
    return found


def row(preset: Preset, runs: Sequence[RunInfo]) -> str:
    """A line of the table; `runs` has at least two."""
    test = summarise([run.metrics["test_accuracy"] for run in runs], (0, 1))
    wanted = preset.published or preset.aim
    figure = f"{wanted:.2%}" if preset.published else f"none, aim {wanted:.2%}" if wanted else "none"
    reached = "" if not wanted else "yes" if test.mean >= wanted else "inside" if test.high >= wanted else "**no**"
    validation = "the test images"
    if runs[0].tags["selection"] == "validation":
        validation = f"{statistics.mean(run.metrics['final_val_accuracy'] for run in runs):.2%}"
    seconds = statistics.median(run.metrics["fit_seconds"] for run in runs)
    ids = " ".join(f"`{run.run_id[:8]}`" for run in runs)
    interval = f"{test.mean:.2%} ± {(test.mean - test.low) * 100:.2f}"
    return (
        f"| `{preset.name}` | {interval} | {figure} | {reached} | {len(runs)} | {validation} | {seconds:.0f} | {ids} |"
    )


def table(stores: Sequence[tracking.Store]) -> str:
    """The Markdown table of all presets that have two runs or more."""
    lines = [
        "| preset | test accuracy | published | reached | seeds | validation | seconds a run | runs, by seed |",
        "|---|---|---|---|--:|---|--:|---|",
    ]
    for preset in PRESETS:
        runs = [*runs_of(stores, f"experiment={preset.name}").values()]
        if len(runs) > 1:
            lines.append(row(preset, runs))
    return "\n".join(lines) + "\n"


def additions(stores: Sequence[tracking.Store]) -> str:
    """Markdown table: the gain in accuracy, in points, of each override in `ADDITIONS` over `BASE`, paired by seed."""
    base = runs_of(stores, *BASE)
    lines = [
        "| override | validation accuracy, gain | test accuracy, gain | test accuracy | seeds |",
        "|---|---|---|---|--:|",
    ]
    if len(base) > 1:
        lines.append(f"| none |  |  | {_accuracy(base)} | {len(base)} |")
        for override in ADDITIONS:
            runs = runs_of(stores, *BASE, override)
            if len(runs) > 1:
                gains = " | ".join(_gain(runs, base, metric) for metric in ("final_val_accuracy", "test_accuracy"))
                lines.append(f"| `{override}` | {gains} | {_accuracy(runs)} | {len(runs)} |")
    return "\n".join(lines) + "\n"


def _accuracy(runs: Mapping[int, RunInfo]) -> str:
    return f"{statistics.mean(run.metrics['test_accuracy'] for run in runs.values()):.2%}"


def _gain(runs: Mapping[int, RunInfo], base: Mapping[int, RunInfo], metric: str) -> str:
    own, other = ({seed: run.metrics[metric] for seed, run in side.items()} for side in (runs, base))
    gain = difference(own, other)
    return f"{gain.value * 100:+.2f} ({gain.low * 100:+.2f} to {gain.high * 100:+.2f})"


def main() -> None:
    """Read the stores and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uris", nargs="*", default=[None], metavar="URI", help="tracking stores; default: ./mlflow.db")
    stores = [tracking.find_store(uri, EXPERIMENT) for uri in parser.parse_args().uris]
    for name, written in (("presets", table(stores)), ("additions", additions(stores))):
        print(written)
        (RESULTS / f"{name}.md").write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
