"""The command line of `decide`: one override has two values, the settings to compare."""

from collections.abc import Sequence
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType

from mnist_exp.config import explain
from mnist_exp.errors import RequestError
from mnist_exp.sweep import grid

# Keys that a decision excludes, and why.
EXCLUDED = {
    "data.fold": "folds are not independent runs",
    "data.folds": "folds are not independent runs",
    "hydra/sweeper": "a decision runs a grid of two settings and their seeds",
    "sweep": "a decision runs a grid of two settings and their seeds",
    "sweep.seeds": "a decision chooses the number of seeds",
    "sweep.skip_finished": "a decision uses the runs of its earlier batches again",
}
EXAMPLE = "such as model=mlp,residual"


class Pair(NamedTuple):
    """The overrides of a sweep without its seeds, and those of a single run of each setting."""

    sweep: list[str]
    first: list[str]
    second: list[str]


def parse(overrides: Sequence[str]) -> Pair:
    """Reads the overrides of a decision.

    Raises:
        RequestError: not exactly one override has two values, or an override does not go with a decision.
    """
    try:
        parsed = grid.last_of_each_key(OverridesParser.create().parse_overrides(list(overrides)))
    except Exception as error:  # Hydra passes on errors of several libraries
        raise RequestError(explain(error)) from error
    for override in parsed:
        if (key := override.get_key_element()) in EXCLUDED:
            raise RequestError(f"{override.input_line}: {EXCLUDED[key]}")
    values = [_values(override) for override in parsed]
    several = [number for number, found in enumerate(values) if len(found) > 1]
    texts = [override.input_line or "" for override in parsed]
    if len(several) != 1:
        given = " and ".join(texts[number] for number in several) or "none"
        raise RequestError(f"one override must have two values, {EXAMPLE}, got {given}")
    if (count := len(values[several[0]])) != 2:
        raise RequestError(f"{texts[several[0]]}: a decision is between two values, {EXAMPLE}, got {count}")
    kept = [text for text, override in zip(texts, parsed, strict=True) if override.get_key_element() != "seed"]
    return Pair(kept, [found[0] for found in values], [found[-1] for found in values])


def _values(override: Override) -> list[str]:
    """The override once for each of its values.

    Raises:
        RequestError: it has values that only a search or the config folders know, or several seeds or data sets.
    """
    text, key = override.input_line or "", override.get_key_element()
    if not override.is_sweep_override():
        return [text]
    if key == "seed":
        raise RequestError(f"{text}: a decision chooses the seeds; seed=N names the first")
    if key == "data":
        raise RequestError(f"{text}: scores on different data are not comparable")
    if override.value_type not in (ValueType.CHOICE_SWEEP, ValueType.SIMPLE_CHOICE_SWEEP):
        raise RequestError(f"{text}: list the two values, {EXAMPLE}")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
