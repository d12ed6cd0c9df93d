"""Start-up tricks."""

from tests.helpers.commands import drive

IMPORT = """
import gc, sys
from mnist_exp.sweep import startup

startup.import_tensorflow()
imported = [name in sys.modules for name in (*startup.UNUSED, "tensorflow")]
print(imported, gc.isenabled(), gc.get_freeze_count() > 100_000)
import sklearn.base
"""


def test_tensorflow_is_imported_without_what_no_run_needs_and_that_can_be_imported_later(tmp_path):
    assert drive(tmp_path, IMPORT, None, 60) == "[False, False, True] True True\n"
