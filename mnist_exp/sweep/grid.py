"""Expands the overrides of a multirun into its jobs: all combinations of values, or pairs of them by tags."""

import itertools
from collections import Counter
from collections.abc import Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from mnist_exp.config import LISTS
from mnist_exp.errors import RequestError

SHORT = {"learning_rate": "lr"}  # in names of runs


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parses overrides by Hydra's grammar; of two overrides of one key the later wins."""
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    return last_of_each_key(parser.parse_overrides(list(overrides)))


def last_of_each_key(overrides: Sequence[Override]) -> list[Override]:
    """Of several overrides of one key the last, at the place of the first."""
    return list({override.get_key_element(): override for override in overrides}.values())


def expand(config: DictConfig, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a multirun without a search.

    Raises:
        RequestError: there is no job, tags do not pair values, or the overrides need a search.
    """
    sweeper = config.hydra.sweeper
    parsed = parse([*(f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()), *overrides])
    for override in parsed:
        if override.is_interval_sweep():
            raise RequestError(f"{override.input_line} needs a search: hydra/sweeper=random or hydra/sweeper=optuna")
        if _tags(override) and sweeper._target_ != "hydra_plugins.mnist_exp.Grid":
            raise RequestError(f"{override.input_line}: only hydra/sweeper=grid pairs values")
    jobs = product(parsed)
    if not jobs:
        raise RequestError(f"the sweep has no runs: {' '.join(overrides)} matches no option and no value")
    return jobs


def seeds(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The override that `sweep.seeds` stands for in a grid: that many seeds, from the config's own.

    Raises:
        RequestError: the sweep has several seeds already.
    """
    first, count = config.seed, config.sweep.seeds
    if count == 1:
        return []
    if "seed" in (config.hydra.sweeper.get("params") or {}) or any(
        override.is_sweep_override() and override.get_key_element() == "seed" for override in parse(overrides)
    ):
        raise RequestError(f"sweep.seeds={count} and several values of seed: give one of them")
    return [f"seed=range({first},{first + count})"]


def product(overrides: Sequence[Override]) -> list[list[str]]:
    """All combinations of the values of the overrides. Values of keys with the same tag advance together, as in `zip`.

    Raises:
        RequestError: keys with the same tag have different numbers of values, or a tag has one key only.
    """
    axes: dict[str, list[list[str]]] = {}  # what each key without a tag, and each tag, adds to a job
    tagged: dict[str, list[str]] = {}
    for override in overrides:
        key, tags = override.get_key_element(), _tags(override)
        if len(tags) > 1:
            raise RequestError(f"{override.input_line}: one tag says which keys go together, got {len(tags)}")
        if not override.is_sweep_override():
            axes[key] = [[override.input_line or ""]]
            continue
        values = [[f"{key}={value}"] for value in override.sweep_string_iterator()]
        if not tags:
            axes[key] = values
            continue
        (tag,) = tags
        tagged.setdefault(tag, []).append(key)
        before = axes.setdefault(f"tag {tag}", [[]] * len(values))
        if len(values) != len(before):
            raise RequestError(
                f"keys with the same tag need equally many values: by tag {tag} {tagged[tag][0]} has {len(before)}, "
                f"{key} has {len(values)}"
            )
        axes[f"tag {tag}"] = [pair + value for pair, value in zip(before, values, strict=True)]
    for tag, keys in tagged.items():
        if len(keys) == 1:
            raise RequestError(f"the tag {tag} of {keys[0]} pairs it with no other key: give one more key this tag")
    return [list(itertools.chain(*job)) for job in itertools.product(*axes.values())]


def _tags(override: Override) -> set[str]:
    """Tags of a sweep such as `tag(zip, choice(1,2))`."""
    return getattr(override.value(), "tags", set())


def varied(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The keys whose overrides differ among jobs, in their order."""
    shared = set.intersection(*map(set, jobs))
    keys = (override.partition("=")[0].lstrip("+~") for job in jobs for override in job if override not in shared)
    return list(dict.fromkeys(keys))


def label(config: DictConfig, keys: Sequence[str]) -> list[str]:
    """The override that adds the values of the varied keys to the names of a sweep's runs, such as `lr=0.01`.

    A name has the seed and the fold anyway, and the keys that `name` itself refers to: by default model and optimizer.
    """
    name = str(OmegaConf.to_container(config, resolve=False)["name"])  # type: ignore[index, call-overload]
    ends = Counter(key.rpartition(".")[2] for key in keys)
    words = []
    for key in keys:
        if key in ("seed", "data.fold", "name") or f"{{{key}}}" in name or f".{key}}}" in name:
            continue
        if key in LISTS:
            words.append(f"${{mnist_exp.word:${{{key}}}}}")
        elif OmegaConf.select(config, f"hydra.runtime.choices.{key}", default=None) is not None:
            words.append(f"${{mnist_exp.word:${{hydra:runtime.choices.{key}}}}}")
        else:
            end = key.rpartition(".")[2]
            short = SHORT.get(end, end) if ends[end] == 1 else key
            words.append(f"{short}=${{mnist_exp.word:${{{key}}}}}")
    return [f"sweep.label='{'-'.join(words)}'"] if words else []
