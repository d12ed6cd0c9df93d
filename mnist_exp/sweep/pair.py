"""Two settings that `decide` compares: the command line that gives them, and where their runs are recorded."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType

from mnist_exp.config import CONF_DIR, explain
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
    """Overrides without the seed, one of them with two values; the first seed; the tracking URI and experiment."""

    overrides: list[str]
    seed: int
    uri: str | None
    experiment: str


def parse(overrides: Sequence[str], config_dir: Path | None) -> Pair:
    """Reads the overrides of a decision.

    Args:
        overrides: Hydra's, as for a sweep.
        config_dir: folder with options of the user.

    Raises:
        RequestError: not exactly one override has two values, or an override does not go with a decision.
    """
    try:
        parsed = grid.last_of_each_key(OverridesParser.create().parse_overrides(list(overrides)))
    except Exception as error:  # Hydra passes on errors of several libraries
        raise RequestError(explain(error)) from error
    keys = [override.get_key_element() for override in parsed]
    for override, key in zip(parsed, keys, strict=True):
        if key in EXCLUDED:
            raise RequestError(f"{override.input_line}: {EXCLUDED[key]}")
    values = [_values(override) for override in parsed]
    several = [override.input_line for override, found in zip(parsed, values, strict=True) if len(found) > 1]
    if len(several) != 1:
        raise RequestError(f"one override must have two values, {EXAMPLE}, got {' and '.join(several) or 'none'}")
    (compared,) = (found for found in values if len(found) > 1)
    if len(compared) != 2:
        raise RequestError(f"{several[0]}: a decision is between two values, {EXAMPLE}, got {len(compared)}")
    kept = [override.input_line for override, key in zip(parsed, keys, strict=True) if key != "seed"]
    search = [] if config_dir is None else [f"hydra.searchpath=[{config_dir.absolute().as_uri()}]"]
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            _, config = (
                compose("train", [*(found[number % len(found)] for found in values), *search]) for number in (1, 0)
            )
        return Pair(kept, config.seed, config.tracking.uri, config.tracking.experiment)
    except Exception as error:  # as above
        raise RequestError(explain(error)) from error


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
