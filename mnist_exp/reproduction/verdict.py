"""How a reproduction compares with its original: epoch by epoch, and in the recorded factors of a result."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mnist_exp.config import changes_result
from mnist_exp.provenance.modules import module_name
from mnist_exp.reproduction.record import Record, Row

IDENTICAL, EQUAL, DIFFERENT = "identical", "equal within tolerance", "different"
# Relative for a loss, absolute for an accuracy. Measured on the presets of MNIST: another order of rounding (one thread
# for two, `fit` for the compiled loop, no oneDNN) moves no loss by more than 0.6 % where training does not amplify it,
# another seed moves some loss by 3 % or more in each of them. Where training does amplify it (6 to 8 % in wide_mlp and
# dropout_mlp) the results are as far apart as seeds make them, and are called different. Half a point of accuracy is
# one image of a small validation set.
LOSS_TOLERANCE, ACCURACY_TOLERANCE = 0.01, 0.005
_UNSET = "unset"
_HARDWARE = ("cpu", "instructions", "machine", "cores")
_SHARED = {"config", "hardware", "Keras setting", "user module"}  # kinds of which only what both sides know is compared
SOURCE = "package source"


class Comparison(NamedTuple):
    """What was recorded after one epoch, 0 being the end of the run, then and now."""

    epoch: int
    weights: bool | None  # whether their digests are equal; None where a side has none
    changed: dict[str, tuple[float, float]]  # metrics that are not the same: then, now

    @property
    def identical(self) -> bool:
        """Whether weights and metrics are the same to the last bit; no weights are recorded at the end of the run."""
        return not self.changed and (self.weights is True or (self.epoch == 0 and self.weights is None))

    @property
    def within(self) -> bool:
        """Whether all metrics are equal within tolerance."""
        return all(_within(name, *pair) for name, pair in self.changed.items())

    def __str__(self) -> str:
        where = f"epoch {self.epoch}" if self.epoch else "the end of the run"
        largest = sorted(self.changed.items(), key=lambda item: -_relative(*item[1]))[:3]
        said = [
            f"{_shown(name)} {then:.9g} then, {now:.9g} now ({_relative(then, now):.2g})"
            for name, (then, now) in largest
        ]
        if not said:
            said = ["no digest of the weights is recorded" if self.weights is None else "the weights, not the metrics"]
        return f"{where}: {'; '.join(said)}"


class Factor(NamedTuple):
    """Something that can change a result and is not what it was."""

    name: str
    then: str
    now: str

    def __str__(self) -> str:
        return f"{_shown(self.name)}: {_shown(self.then)} then, {_shown(self.now)} now"


class Report(NamedTuple):
    """The verdict and what it stands on."""

    verdict: str
    epochs: list[Comparison]
    factors: list[Factor]
    unrecorded: list[str]  # factors that one side does not know

    @property
    def first(self) -> Comparison | None:
        """The first epoch that is not the same to the last bit."""
        return next((compared for compared in self.epochs if not compared.identical), None)

    def distances(self) -> dict[str, list[float]]:
        """For each loss and accuracy how far it is from what it was, by epoch."""
        epochs = [compared for compared in self.epochs if compared.epoch > 0]
        names = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
        pairs = {name: [compared.changed.get(name, (0.0, 0.0)) for compared in epochs] for name in names}
        return {name: [abs(now - then) for then, now in found] for name, found in pairs.items()}

    def lines(self) -> Iterator[str]:
        """For the terminal: the verdict, then what differs."""
        epochs = sum(compared.epoch > 0 for compared in self.epochs)
        end = " and the final scores" if any(compared.epoch == 0 for compared in self.epochs) else ""
        yield f"{self.verdict}: {epochs} epoch{'s' * (epochs != 1)}{end} compared"
        if self.first is not None:
            yield f"first difference: {self.first}"
            yield from factor_lines(self.factors, self.unrecorded)

    def to_json(self) -> dict[str, Any]:
        """All of it, with the tolerances, as `reproduction.json` has it; infinite and missing numbers as text."""
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


def compare(epoch: int, then: Row, now: Row | None) -> Comparison:
    """One epoch; what measures time is left out, and of an epoch that did not come now, every metric is missing."""
    shared = [name for name in then if name != "weights" and "second" not in name and (now is None or name in now)]
    pairs = {name: (float(then[name]), float(now[name]) if now is not None else math.nan) for name in shared}
    changed = {name: pair for name, pair in pairs.items() if not _same(*pair)}
    if now is None:
        return Comparison(epoch, False, changed)
    both = "weights" in then and "weights" in now
    return Comparison(epoch, then["weights"] == now["weights"] if both else None, changed)


def compare_factors(then: Record, now: Record) -> tuple[list[Factor], list[str]]:
    """Factors that are not what they were, and those that one side did not record."""
    found, unrecorded = [], []
    before, after = _factors(then), _factors(now)
    for kind, old in before.items():
        new = after[kind]
        if old is None or new is None:
            unrecorded.append(kind)
            continue
        # A key of the config that came later has the default that keeps what was. Other user modules are imported only
        # by one that has changed.
        for key in sorted(old.keys() & new.keys() if kind in _SHARED else old.keys() | new.keys()):
            pair = old.get(key, _UNSET), new.get(key, _UNSET)
            if pair[0] != pair[1]:
                found.append(Factor(f"{kind} {key}".rstrip(), *pair))
    return found, unrecorded


def known(record: Record) -> dict[str, str | None]:
    """Threads and device of a run; None where they are not recorded."""
    found = _factors(record)
    values = {kind: found[kind] for kind in ("threads", "device")}
    return {kind: value.get("") if value is not None else None for kind, value in values.items()}


def factor_lines(factors: list[Factor], unrecorded: Sequence[str] = ()) -> Iterator[str]:
    """For the terminal; of source files just the names."""
    files = [_shown(factor.name.removeprefix(SOURCE).strip()) for factor in factors if factor.name.startswith(SOURCE)]
    if files:
        yield f"  differs: {SOURCE}: {', '.join(files)}"
    yield from (f"  differs: {factor}" for factor in factors if not factor.name.startswith(SOURCE))
    if unrecorded:
        yield f"  cannot be compared: {', '.join(unrecorded)}"


def _factors(record: Record) -> dict[str, dict[str, str] | None]:
    """What can change a result, by kind; None where it was not recorded."""
    environment, tags = record.environment(), record.tags
    facts = environment.get("facts")
    packages = _texts(environment, "packages")
    python = _texts(environment, "python")
    config = _texts(environment, "config")
    hardware = _texts(environment, "hardware")
    source = _texts(environment, "source")
    files = {key: digest for key, digest in (source or {}).items() if key.endswith(".py")}
    # An earlier version recorded only the module of a target, under its dotted name.
    known_modules = source is not None and len(files) == len(source)
    return {
        "config": {key: config[key] for key in config if changes_result(key)} if config else None,
        "data": _texts({"data": tags.get("data.fingerprint")}, "data") or _texts(facts, "data"),
        SOURCE: {key: files[key] for key in files if not module_name(key)} if source is not None else None,
        "version of": {**packages, "python": python.get("", _UNSET)} if packages and python else None,
        "threads": _texts(tags, "threads") or _texts(facts, "threads"),
        "device": _texts(tags, "device") or _texts(facts, "device"),
        "execution": _texts(tags, "execution"),
        "execution.xla": _texts(tags, "execution.xla"),
        "variable": _texts(environment, "variables"),
        "hardware": hardware and {key: hardware[key] for key in _HARDWARE if key in hardware},
        "user module": {key: files[key] for key in files if module_name(key)} if known_modules else None,
        "Keras setting": _texts(facts, "keras_config"),
    }


def _texts(tree: Any, key: str) -> dict[str, str] | None:
    """What is below a key as texts, a single value under ''; None where it is not: nothing in a record is certain."""
    value = tree.get(key) if isinstance(tree, dict) else None
    if isinstance(value, dict):
        return {str(inner): str(text) for inner, text in value.items()}
    return None if value is None else {"": str(value)}


def _same(then: float, now: float) -> bool:
    return then == now or (math.isnan(then) and math.isnan(now))


def _relative(then: float, now: float) -> float:
    """The difference as a share of what it was then; infinite where a side is no number."""
    if not (math.isfinite(then) and math.isfinite(now)):
        return math.inf
    return abs(now - then) / abs(then) if then else math.inf


def _within(name: str, then: float, now: float) -> bool:
    if name.endswith("loss"):
        return _relative(then, now) <= LOSS_TOLERANCE
    return name.endswith(("accuracy", "calibration_error")) and abs(now - then) <= ACCURACY_TOLERANCE


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no others


def _shown(text: str) -> str:
    """A line of a terminal, whatever the record holds."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 60 else f"{text[:12]}…" if text.isalnum() else f"{text[:59]}…"
