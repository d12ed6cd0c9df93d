"""`python -m benchmarks.scaling`: how cost grows with batch size, hidden width and number of images.

Training images a second of one hidden layer with Adam, in this process, without tracking: the device loop against
the same trainer's plain Keras execution. Written as benchmarks/results/scaling.md and docs/images/scaling.png.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from benchmarks import chart
from benchmarks.speed import CHARTS, RESULTS
from mnist_exp import data, models, provenance
from mnist_exp.losses import cross_entropy
from mnist_exp.training import devices, trainer

EXECUTIONS = {
    "device loop": trainer.Execution("device_loop", True, ""),
    "keras fit": trainer.Execution("keras", True, ""),
}


def rate(execution: trainer.Execution, mnist: data.Dataset, images: int, width: int, batch_size: int) -> float:
    """Best training images a second of the epochs after the first; the set is cut or repeated to `images`."""
    devices.fresh_session(0, "float32")
    chosen = np.arange(images) % len(mnist.train.labels)
    train = data.Split(*(part[chosen] for part in mnist.train))
    validation = data.Split(*(part[:1000] for part in mnist.validation))
    model = models.mlp(mnist.image_shape, 10, hidden=[width], activation="relu", dropout=0.0, batch_norm=False)
    fitted = trainer.fit(
        model,
        mnist._replace(train=train, validation=validation),
        trainer.Training(cross_entropy(10), keras.optimizers.Adam(), 3, batch_size, seed=0, execution=execution),
    )
    return max(fitted.history["images_per_second"][1:])


def main() -> None:
    """Measure the three panels."""
    devices.configure("cpu", provenance.cores())
    mnist = data.mnist(validation="test")
    panels = {
        "batch size (width 128, 60,000 images)": [(b, (60_000, 128, b)) for b in (16, 32, 64, 128, 512, 1024, 4096)],
        "hidden width (batch 128, 60,000 images)": [(w, (60_000, w, 128)) for w in (64, 128, 256, 512, 1024, 4096)],
        "training images (width 128, batch 128)": [
            (n, (n, 128, 128)) for n in (6_000, 20_000, 60_000, 200_000, 600_000)
        ],
    }
    measured: dict[str, dict[str, list[tuple[float, float]]]] = {}
    lines = ["| | " + " | ".join(EXECUTIONS) + " |", "|---|--:|--:|"]
    for label, points in panels.items():
        measured[label] = {name: [] for name in EXECUTIONS}
        for x, (images, width, batch_size) in points:
            for name, execution in EXECUTIONS.items():
                measured[label][name].append((x, rate(execution, mnist, images, width, batch_size)))
            figures = " | ".join(f"{lines[-1][1]:,.0f}" for lines in measured[label].values())
            lines.append(f"| {label.split(' (')[0]} {x:,} | {figures} |")
            print(lines[-1], file=sys.stderr, flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scaling.md").write_text("Training images a second.\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    chart.scaling(measured).savefig(CHARTS / "scaling.png")


if __name__ == "__main__":
    main()
