"""What Hydra imports and makes through `hydra_plugins`, also in programs that do not use mnist_exp."""

import json

from tests.helpers.commands import drive

# Prints the modules that come besides Hydra's own, and which of our classes Hydra knows.
SCAN = """
import json, sys
import hydra._internal.core_plugins.basic_sweeper, hydra.core.utils
before = set(sys.modules)
from hydra.core.plugins import Plugins
known = sorted(name for name in Plugins.instance().class_name_to_class if name.startswith("hydra_plugins.mnist_exp."))
print(json.dumps([known, sorted(set(sys.modules) - before)]))
"""


def test_another_program_that_uses_hydra_imports_nothing_of_ours_but_the_file_that_hydra_reads(tmp_path):
    known, modules = json.loads(drive(tmp_path, SCAN, None, 60))
    assert known == [f"hydra_plugins.mnist_exp.{name}" for name in ("Grid", "Optuna", "Processes", "Random")]
    assert [name for name in modules if "mnist_exp" in name] == ["hydra_plugins.mnist_exp"]
    heavy = {"cloudpickle", "keras", "mlflow", "numpy", "optuna", "rich", "sklearn", "tensorflow"}
    assert not heavy & {name.partition(".")[0] for name in modules}
