"""How the user's own modules are found without an import, recorded and restored."""

import sys
import sysconfig

import pytest

from mnist_exp.errors import RequestError
from mnist_exp.provenance import modules
from mnist_exp.provenance.modules import UserCode, module_name, recordable, user_code, write

# What imports what; each module ends the process when it is executed.
FILES = {
    "proj/__init__.py": "from proj import setup",
    "proj/setup.py": "import os",
    "proj/model.py": "import keras, numpy\nfrom . import layers\nfrom .deep.block import Block\nfrom flat import x",
    "proj/layers.py": "def late():\n    import lazy\n    from proj.deep import *",
    "proj/deep/block.py": "from ... import too_far\nfrom .. import layers",  # no __init__: a namespace package
    "proj/unused.py": "",
    "flat.py": "import importlib\nimportlib.import_module('by_name')\n__import__('also.sub')\nimport absent, rich.box",
    "lazy.py": "if TYPE_CHECKING:\n    import typed",
    "typed.py": "from sklearn import svm\nimport json, mnist_exp.models",
    "by_name.py": "this is not Python",
    "also/__init__.py": "",
    "also/sub.py": "from PIL import Image",
    "other.py": "",
}
OWN = {
    *("proj/__init__.py", "proj/setup.py", "proj/model.py", "proj/layers.py", "proj/deep/block.py", "flat.py"),
    *("lazy.py", "typed.py", "by_name.py", "also/__init__.py", "also/sub.py"),
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\nraise SystemExit('executed')\n")
    monkeypatch.syspath_prepend(tmp_path / "project")
    user_code.cache_clear()
    yield tmp_path / "project"
    user_code.cache_clear()


def test_all_modules_that_a_target_imports_are_found_and_none_is_executed(project):
    sysconfig.get_paths()  # Python imports its own build settings when they are first asked for
    before = set(sys.modules)
    found = user_code(frozenset({"proj.model.build", "keras.optimizers.Adam", "mnist_exp.data.digits"}))
    assert set(found.files) == {f"code/{name}" for name in OWN}
    assert found.files["code/flat.py"] == (project / "flat.py").read_bytes()
    assert found.packages == {"keras", "numpy", "rich", "sklearn", "PIL"}
    assert set(sys.modules) - before == set()


def test_targets_of_this_package_have_no_user_modules():
    targets = {"mnist_exp.models.mlp", "keras.optimizers.Adam", "mnist_exp.schedules.constant", "os.path.join"}
    assert user_code(frozenset(targets)) == UserCode({}, frozenset({"keras"}))


def test_a_later_edit_does_not_count_in_this_process(project):
    before = user_code(frozenset({"flat.build"}))
    (project / "by_name.py").write_text("edited")
    assert user_code(frozenset({"flat.build"})) == before
    user_code.cache_clear()
    assert user_code(frozenset({"flat.build"})).files["code/by_name.py"] == b"edited"


def test_changed_and_missing_modules_are_named(project):
    files = user_code(frozenset({"proj.model.build"})).files
    assert modules.changed(files) == []
    (project / "proj" / "setup.py").write_text("")
    (project / "lazy.py").unlink()
    assert modules.changed(files) == ["lazy", "proj.setup"]


def test_written_modules_equal_the_recorded_ones(project, tmp_path, monkeypatch):
    files = user_code(frozenset({"proj.model.build"})).files
    modules.check(files)
    write(files, tmp_path / "again")
    user_code.cache_clear()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "again"), *sys.path])
    assert user_code(frozenset({"proj.model.build"})).files == files
    for name in OWN:
        (project / name).unlink()
    assert modules.changed(files) == []


def test_files_that_are_not_recorded_are_named_in_one_line():
    kept = {"code/mine.py": b"a = 1", "code/pkg/__init__.py": b""}
    assert recordable(UserCode(kept, frozenset())) == (kept, "")
    lost = {"code/key.py": b"password = 'hunter22'", "code/fast.so": b"\x7fELF", "code/long.py": b"#" * 2**21}
    found, said = recordable(UserCode({**kept, **lost}, frozenset()))
    assert found == kept
    assert said.startswith("not recorded with the run: fast.so, key.py, long.py (")
    many = {f"code/m{n}.py": b"" for n in range(modules.MAX_FILES + 1)}
    assert recordable(UserCode(many, frozenset()))[0] == {}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("code/a.py", "a"),
        ("code/a/b_2.py", "a.b_2"),
        ("code/a/__init__.py", "a"),
        *((f"code/{bad}", None) for bad in ("__init__.py", "a", "a.so", "../a.py", "a/../b.py", "/a.py", "a-b.py")),
        *(
            (bad, None)
            for bad in ("a.py", "code.py", "code//a.py", "/code/a.py", "code/a.py/", r"code\a.py", "code/.py")
        ),
        *((bad, None) for bad in ("code/a b.py", "code/a\n.py", "code/1.py", "code/" + "a" * 150 + ".py", "")),
    ],
)
def test_only_paths_of_modules_have_module_names(file, name):
    assert module_name(file) == name


@pytest.mark.parametrize(
    "top", ["os", "json", "sys", "mnist_exp", "hydra_plugins", "numpy", "keras", "tensorflow", "rich"]
)
def test_a_recorded_module_must_not_hide_another_one(top):
    for file in (f"code/{top}.py", f"code/{top}/__init__.py", f"code/{top}/evil.py"):
        with pytest.raises(RequestError, match=f"would hide {top}, which belongs to Python or is installed"):
            modules.check([file])
    with pytest.raises(RequestError, match="is not the path of a module"):
        modules.check(["code/../evil.py"])


def test_no_module_is_written_through_a_symbolic_link(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "pkg").symlink_to(tmp_path / "outside")
    (tmp_path / "target" / "file.py").symlink_to(tmp_path / "outside" / "file.py")
    for file in ("code/pkg/evil.py", "code/pkg/deeper/evil.py", "code/file.py"):
        with pytest.raises(RequestError, match="because of a symbolic link"):
            write({file: b"x"}, tmp_path / "target")
    assert list((tmp_path / "outside").iterdir()) == []
