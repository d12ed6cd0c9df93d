"""Has Hydra do once what it does again for each config, because composing took a third of the tests' time.

Its results stay the same: tests/contracts/test_quick_hydra.py.
"""

import functools
import os
import pickle

import omegaconf.base
from hydra._internal import config_repository, defaults_list
from hydra._internal.hydra import Hydra
from hydra.core.object_type import ObjectType
from omegaconf import grammar_parser

load_config = config_repository.ConfigRepository.load_config
create_interpolation_map = defaults_list._create_interpolation_map
get_mode = Hydra.get_mode
files: dict[tuple, bytes] = {}


def load_once(self, config_path):
    """Parses a file of options only if it has changed."""
    source = self._find_object_source(config_path, ObjectType.CONFIG)
    if source is None or source.scheme() not in ("file", "pkg"):
        return load_config(self, config_path)
    key: tuple = (source.scheme(), source.provider, source.path, config_path)
    if source.scheme() == "file":
        found = os.stat(os.path.join(source.path, source._normalize_file_name(config_path)))  # noqa: PTH116, PTH118
        key += (found.st_mtime_ns, found.st_size, found.st_ino)
    if key not in files:
        files[key] = pickle.dumps(load_config(self, config_path))
    return pickle.loads(files[key])


def map_if_used(overrides, defaults, self_added):
    """Makes the values for interpolations only if one of the defaults has an interpolation."""
    wanted = any(default.is_interpolation() for default in defaults)
    return create_interpolation_map(overrides, defaults, self_added) if wanted else None


def mode_if_given(self, config_name, overrides):
    """Composes only where the mode may be set; Hydra composes each config twice to find it unset."""
    may_be_set = any(text.lstrip("+").startswith(("hydra", "sweep=")) for text in overrides)
    return get_mode(self, config_name, overrides) if may_be_set else None


def use():
    """Has this process compose so from now on."""
    config_repository.ConfigRepository.load_config = load_once  # type: ignore[method-assign]
    defaults_list._create_interpolation_map = map_if_used
    Hydra.get_mode = mode_if_given  # type: ignore[method-assign]
    omegaconf.base.parse = functools.lru_cache(maxsize=10_000)(grammar_parser.parse)
