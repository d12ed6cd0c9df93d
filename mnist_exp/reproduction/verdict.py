"""Compares a reproduction with its original: metrics and weights of each epoch, and what else can change a result."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mnist_exp.config import RENAMED_EXECUTIONS, changes_result, current_params
from mnist_exp.console import printable
from mnist_exp.provenance.modules import module_name
from mnist_exp.reproduction.record import EpochRecord, Record

IDENTICAL, EQUAL, DIFFERENT = "identical", "equal within tolerance", "different"
# Relative for a loss, absolute for an accuracy. Measured on the MNIST presets: another order of rounding (one thread
# for two, `fit` for the device loop, no oneDNN) moves no loss by more than 0.6 % in most presets, while another seed
# moves some loss of each preset by 3 % or more. In wide_mlp and dropout_mlp training amplifies rounding to 6 to 8 %, as
# much as another seed does; such results are called different. Half a point of accuracy is one image of a small
# validation set.
LOSS_TOLERANCE, ACCURACY_TOLERANCE = 0.01, 0.005
_UNSET = "unset"
_HARDWARE = ("cpu", "instructions", "machine", "cores")
# Of these kinds only what both sides recorded is compared: a later key of the config has a default that keeps the
# earlier behaviour, and only a changed user module imports other modules.
_SHARED = {"config", "hardware", "Keras setting", "user module"}
SOURCE = "package source"


class Comparison(NamedTuple):
    """One epoch then and now; epoch 0 is the end of the run."""

    epoch: int
    weights: bool | None  # whether the digests are equal; None if one is missing
    changed: dict[str, tuple[float, float]]  # metrics that differ: then, now

    @property
    def identical(self) -> bool:
        """Whether weights and metrics are equal to the last bit; the end of the run has no record of weights."""
        return not self.changed and (self.weights is True or (self.epoch == 0 and self.weights is None))

    @property
    def within(self) -> bool:
        """Whether all metrics are equal within tolerance."""
        return all(_within(name, *pair) for name, pair in self.changed.items())

    def __str__(self) -> str:
        where = f"epoch {self.epoch}" if self.epoch else "the end of the run"
        largest = sorted(self.changed.items(), key=lambda item: -_relative(*item[1]))[:3]
        parts = [
            f"{_shown(name)} {then:.9g} then, {now:.9g} now ({_relative(then, now):.2g})"
            for name, (then, now) in largest
        ]
        weights = "no digest of the weights is recorded" if self.weights is None else "the weights, not the metrics"
        return f"{where}: {'; '.join(parts) or weights}"


class Factor(NamedTuple):
    """Something that can change a result and differs between then and now."""

    name: str
    then: str
    now: str

    def __str__(self) -> str:
        return f"{_shown(self.name)}: {_shown(self.then)} then, {_shown(self.now)} now"


class Report(NamedTuple):
    """The verdict and its reasons."""

    verdict: str
    epochs: list[Comparison]
    factors: list[Factor]
    unrecorded: list[str]  # kinds of factors that one side did not record

    @property
    def first(self) -> Comparison | None:
        """The first epoch that is not identical."""
        return next((compared for compared in self.epochs if not compared.identical), None)

    def distances(self) -> dict[str, list[float]]:
        """Absolute differences of the losses and accuracies, by name, one value an epoch."""
        epochs = [compared for compared in self.epochs if compared.epoch > 0]
        names = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
        pairs = {name: [compared.changed.get(name, (0.0, 0.0)) for compared in epochs] for name in names}
        return {name: [abs(now - then) for then, now in found] for name, found in pairs.items()}

    def lines(self) -> Iterator[str]:
        """Lines for the terminal: the verdict, then the differences."""
        epochs = sum(compared.epoch > 0 for compared in self.epochs)
        end = " and the final scores" if any(compared.epoch == 0 for compared in self.epochs) else ""
        yield f"{self.verdict}: {epochs} epoch{'s' * (epochs != 1)}{end} compared"
        if self.first is not None:
            yield f"first difference: {self.first}"
            yield from factor_lines(self.factors, self.unrecorded)

    def to_json(self) -> dict[str, Any]:
        """The content of `reproduction.json`. Infinite and missing numbers become text, because JSON has none."""
        return {
            "verdict": self.verdict,
            "tolerance": {"loss, relative": LOSS_TOLERANCE, "accuracy, absolute": ACCURACY_TOLERANCE},
            "first_difference": self.first.epoch if self.first is not None else None,
            "factors": [factor._asdict() for factor in self.factors],
            "unrecorded": self.unrecorded,
            "epochs": [
                {
                    "epoch": compared.epoch,
                    "identical": compared.identical,
                    "weights_identical": compared.weights,
                    "changed": {name: [_number(value) for value in pair] for name, pair in compared.changed.items()},
                }
                for compared in self.epochs
            ],
        }


def judge(then: Record, now: Record, until: int) -> Report:
    """Compare the first `until` epochs, and the end of the run where these are all that were recorded."""
    before, after = then.rows(), now.rows()
    steps = [step for step in before if 1 <= step <= until]
    if 0 in before and until >= max(before):
        steps.append(0)
    epochs = [compare(step, before[step], after.get(step)) for step in steps]
    if all(compared.identical for compared in epochs):
        verdict = IDENTICAL
    else:
        verdict = EQUAL if all(compared.within for compared in epochs) else DIFFERENT
    return Report(verdict, epochs, *compare_factors(then, now))


def compare(epoch: int, then: EpochRecord, now: EpochRecord | None) -> Comparison:
    """Compare one epoch without its times. `now` is None if the epoch was not trained; all its metrics then differ."""
    shared = [name for name in then if name != "weights" and "second" not in name and (now is None or name in now)]
    pairs = {name: (float(then[name]), float(now[name]) if now is not None else math.nan) for name in shared}
    changed = {name: pair for name, pair in pairs.items() if not _same(*pair)}
    if now is None:
        return Comparison(epoch, False, changed)
    both = "weights" in then and "weights" in now
    return Comparison(epoch, then["weights"] == now["weights"] if both else None, changed)


def compare_factors(then: Record, now: Record) -> tuple[list[Factor], list[str]]:
    """Factors that differ, and the kinds of factors that one side did not record."""
    found, unrecorded = [], []
    before, after = _factors(then), _factors(now)
    trees = [_texts(record.environment(), "source_trees") or {} for record in (then, now)]
    same_code = {name for name, digest in trees[0].items() if trees[1].get(name) == digest}  # but for comments
    for kind, old in before.items():
        new = after[kind]
        if old is None or new is None:
            unrecorded.append(kind)
            continue
        for key in sorted(old.keys() & new.keys() if kind in _SHARED else old.keys() | new.keys()):
            pair = old.get(key, _UNSET), new.get(key, _UNSET)
            if pair[0] != pair[1] and not (kind in (SOURCE, "user module") and key in same_code):
                found.append(Factor(f"{kind} {key}".rstrip(), *pair))
    return found, unrecorded


def known(record: Record) -> dict[str, str | None]:
    """Threads and device of a run; None if not recorded."""
    found = _factors(record)
    return {kind: (found[kind] or {}).get("") for kind in ("threads", "device")}


def factor_lines(factors: list[Factor], unrecorded: Sequence[str] = ()) -> Iterator[str]:
    """Lines for the terminal; of source files only the names."""
    files = [_shown(factor.name.removeprefix(SOURCE).strip()) for factor in factors if factor.name.startswith(SOURCE)]
    if files:
        yield f"  differs: {SOURCE}: {', '.join(files)}"
    yield from (f"  differs: {factor}" for factor in factors if not factor.name.startswith(SOURCE))
    if unrecorded:
        yield f"  cannot be compared: {', '.join(unrecorded)}"


def _factors(record: Record) -> dict[str, dict[str, str] | None]:
    """What can change a result, by kind; None if it was not recorded."""
    environment, tags = record.environment(), record.tags
    facts = environment.get("facts")
    packages = _texts(environment, "packages")
    python = _texts(environment, "python")
    config = _texts(environment, "config")
    hardware = _texts(environment, "hardware")
    source = _texts(environment, "source")
    execution = tags.get("execution")
    files = {key: digest for key, digest in (source or {}).items() if key.endswith(".py")}
    # Earlier versions recorded only a target's module, by its dotted name instead of its file's.
    known_modules = source is not None and len(files) == len(source)
    return {
        "config": {k: v for k, v in current_params(config).items() if changes_result(k)} if config else None,
        "data": _texts({"data": tags.get("data.fingerprint")}, "data") or _texts(facts, "data"),
        SOURCE: {key: files[key] for key in files if not module_name(key)} if source is not None else None,
        "version of": {**packages, "python": python.get("", _UNSET)} if packages and python else None,
        "threads": _texts(tags, "threads") or _texts(facts, "threads"),
        "device": _texts(tags, "device") or _texts(facts, "device"),
        "execution": _texts({"": RENAMED_EXECUTIONS.get(str(execution), execution)}, ""),
        "execution.xla": _texts(tags, "execution.xla"),
        "variable": _texts(environment, "variables"),
        "hardware": hardware and {key: hardware[key] for key in _HARDWARE if key in hardware},
        "user module": {key: files[key] for key in files if module_name(key)} if known_modules else None,
        "Keras setting": _texts(facts, "keras_config"),
    }


def _texts(tree: Any, key: str) -> dict[str, str] | None:
    """The values below a key as texts, a single value under ''; None if there are none. `tree` may be anything."""
    value = tree.get(key) if isinstance(tree, dict) else None
    if isinstance(value, dict):
        return {str(inner): str(text) for inner, text in value.items()}
    return None if value is None else {"": str(value)}


def _same(then: float, now: float) -> bool:
    return then == now or (math.isnan(then) and math.isnan(now))


def _relative(then: float, now: float) -> float:
    """The difference relative to `then`; infinite if either is not finite."""
    if not (math.isfinite(then) and math.isfinite(now)):
        return math.inf
    return abs(now - then) / abs(then) if then else math.inf


def _within(name: str, then: float, now: float) -> bool:
    if name.endswith("loss"):
        return _relative(then, now) <= LOSS_TOLERANCE
    return name.endswith(("accuracy", "calibration_error")) and abs(now - then) <= ACCURACY_TOLERANCE


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _shown(text: str) -> str:
    """At most 60 letters of a text that a stranger may have written, or the first 12 of a digest."""
    text = printable(text)
    return text if len(text) <= 60 else f"{text[:12]}…" if text.isalnum() else f"{text[:59]}…"
