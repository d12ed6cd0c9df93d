"""Start-up tricks."""

import pytest

from mnist_exp import provenance
from mnist_exp.config import TrainerConfig
from mnist_exp.sweep import startup
from tests.helpers.commands import drive

IMPORT = """
import gc, sys
from mnist_exp.sweep import startup

startup.import_tensorflow()
imported = [name in sys.modules for name in (startup.UNUSED, "tensorflow")]
print(imported, gc.isenabled(), gc.get_freeze_count() > 100_000)
import sklearn.base
"""


def test_tensorflow_is_imported_without_what_no_run_needs_and_that_can_be_imported_later(tmp_path):
    assert drive(tmp_path, IMPORT, None, 60) == "[False, True] True True\n"


@pytest.mark.parametrize("devices", ["auto", "cpu", "cpu:2"])
def test_the_device_is_known_without_tensorflow_where_there_is_no_gpu(devices, monkeypatch):
    monkeypatch.setattr(provenance, "gpus", lambda: [])
    assert startup.device(TrainerConfig(devices=devices, threads=1)) == {"cpu:2": "2 x cpu"}.get(devices, "cpu")
