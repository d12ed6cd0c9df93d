"""Provenance on real git repositories, without secrets in the record."""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from mnist_exp import provenance
from mnist_exp.errors import RequestError
from mnist_exp.provenance import environment, source
from mnist_exp.provenance.git import DIFF_LIMIT, UNKNOWN, Code, code_state
from mnist_exp.provenance.modules import UserCode

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *arguments: str) -> str:
    """Runs git without the settings of the user."""
    settings = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    settings += ["-c", "core.autocrlf=false"]
    return subprocess.run(["git", *settings, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a checkout without those of git."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A checkout without commits that contains a package, its configuration and a note."""
    top = tmp_path / "checkout"
    package = top / "package"
    package.mkdir(parents=True)
    (top / "conf").mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text("layers = 2\n")
    (package / "old.py").write_text("removed = True\n")
    (package / "blob.bin").write_bytes(bytes(range(256)))
    (top / "conf" / "config.yaml").write_text("seed: 1\n")
    (top / "note.txt").write_bytes(b"windows\r\nlines\r\n")
    (top / ".gitignore").write_text("*.secret\nvenv/\n")
    git(top, "init", "--quiet")
    return top


@pytest.fixture
def checkout(empty: Path) -> Path:
    """The same checkout with all files committed on branch `topic`."""
    git(empty, "checkout", "--quiet", "-b", "topic")
    git(empty, "add", ".")
    git(empty, "commit", "--quiet", "-m", "first")
    return empty


@needs_git
def test_the_state_of_a_clean_checkout_is_its_commit(checkout):
    commit = git(checkout, "rev-parse", "HEAD").strip()
    for name in contents(checkout):
        os.utime(checkout / name, (1, 1))  # another time is no change
    assert code_state(checkout / "package") == Code(commit, "topic", False, "")
    git(checkout, "checkout", "--quiet", "--detach")
    assert code_state(checkout / "package") == Code(commit, None, False, "")


@needs_git
def test_the_recorded_diff_restores_the_files_on_a_clean_checkout(checkout, tmp_path):
    package = checkout / "package"
    (package / "model.py").write_text("layers = 3  # größer\n")
    (package / "model.py").chmod(0o755)
    (package / "old.py").unlink()
    (package / "blob.bin").write_bytes(bytes(range(255, -1, -1)))
    (package / "staged.py").write_text("staged = True\n")
    git(checkout, "add", "package/staged.py")
    (package / "new folder").mkdir()
    (package / "new folder" / "größe [1] *.py").write_text("no newline at the end")
    (package / "empty.py").write_text("")
    (package / "new.bin").write_bytes(b"\0\xff" * 100)
    (checkout / "conf" / "own.yaml").write_text("seed: 2\n")
    (checkout / "note.txt").write_bytes(b"windows\r\nlines changed\r\n")
    state = code_state(package)
    assert state.dirty

    clean = tmp_path / "clean"
    git(tmp_path, "clone", "--quiet", str(checkout), str(clean))
    (tmp_path / "code.diff").write_bytes(state.diff.encode())
    git(clean, "apply", str(tmp_path / "code.diff"))
    assert contents(clean) == contents(checkout)
    assert os.access(clean / "package" / "model.py", os.X_OK)


@needs_git
def test_user_settings_of_git_do_not_change_the_diff(checkout, tmp_path):
    (checkout / "package" / "model.py").write_text("layers = 3\n")
    (checkout / "package" / "new.py").write_text("")
    plain = code_state(checkout / "package").diff
    for setting in (
        "color.ui=always",
        "diff.noprefix=true",
        "diff.external=false",
        "status.showUntrackedFiles=no",
    ):
        git(checkout, "config", *setting.split("="))
    git(checkout, "config", "diff.shout.textconv", "echo shouted")
    (checkout / ".git" / "info" / "attributes").write_text("*.py diff=shout\n")
    assert code_state(checkout / "package").diff == plain
    assert "+layers = 3" in plain
    assert "new file" in plain


@needs_git
def test_the_repository_is_only_read(checkout):
    os.utime(checkout / "package" / "model.py", (1, 1))  # which would make git refresh its index
    (checkout / "package" / "new.py").write_text("")
    (checkout / "package" / "old.py").write_text("removed = False\n")
    git(checkout, "add", "package/old.py")
    before = {path: path.read_bytes() for path in (checkout / ".git").rglob("*") if path.is_file()}
    assert code_state(checkout / "package").dirty
    after = {path: path.read_bytes() for path in (checkout / ".git").rglob("*") if path.is_file()}
    assert after == before


@needs_git
def test_ignored_files_and_untracked_files_elsewhere_are_not_recorded(checkout):
    (checkout / "package" / "key.secret").write_text("hush")
    (checkout / "notebook.ipynb").write_text("{}")
    nested = checkout / "package" / "nested"
    nested.mkdir()
    git(nested, "init", "--quiet")
    (nested / "file.py").write_text("")
    state = code_state(checkout / "package")
    assert not state.dirty
    assert state.diff == ""


@needs_git
def test_files_with_secrets_are_not_recorded_and_all_others_are_restored(checkout, tmp_path):
    package = checkout / "package"
    (package / ".env").write_text("TOKEN=hush-hush\n")
    (package / "key.pem").write_text("hush-hush\n")
    (package / "store.yaml").write_text("password: hush-hush\n")
    (package / "store.py").write_text('URL = "postgresql://me:hush-hush@host/db"\n')
    (package / "new.py").write_text("password = ask()\n")
    (package / "model.py").write_text("layers = 3\n")
    state = code_state(package)
    assert state.commit is not None
    assert "hush-hush" not in state.diff
    assert [line for line in state.diff.splitlines() if line.startswith("# left out: ")] == [
        f"# left out: package/{name}: it seems to hold a password or a key" for name in ("store.py", "store.yaml")
    ]
    provenance.restore(package, state.commit, state.diff.encode(), tmp_path / "then")
    restored = {path.name for path in (tmp_path / "then" / "package").iterdir()}
    assert {"new.py", "model.py"} <= restored
    assert not restored & {".env", "key.pem", "store.py", "store.yaml"}
    assert (tmp_path / "then" / "package" / "model.py").read_text() == "layers = 3\n"


@needs_git
def test_a_run_s_code_is_restored_into_a_new_folder(checkout, tmp_path):
    package = checkout / "package"
    (package / "model.py").write_text("layers = 3\n")
    (package / "old.py").unlink()
    (package / "new.py").write_text("untracked\r\n")
    state = code_state(package)
    then = contents(checkout)
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "second")
    (package / "model.py").write_text("layers = 4\n")
    now = contents(checkout)
    assert state.commit is not None
    provenance.restore(package, state.commit, state.diff.encode(), tmp_path / "then")
    assert contents(tmp_path / "then") == then
    assert contents(checkout) == now
    assert git(tmp_path / "then", "rev-parse", "HEAD").strip() == state.commit


@needs_git
@pytest.mark.parametrize(
    ("commit", "diff", "said"),
    [
        ("unknown", "", "the run's commit is unknown: its code was not in a repository"),
        ("--upload-pack=touch evil", "", "cannot be restored"),
        ("HEAD", "", "cannot be restored"),
        ("0" * 40, "", "cannot be restored from"),
        (None, "x\n# cut: the whole diff has 2000000 bytes, git apply will refuse this part\n", "is incomplete"),
        (None, "# not recorded: timed out\n", "is incomplete"),
        (None, "no diff", "No valid patches"),
        (None, "--- a/../evil\n+++ b/../evil\n@@ -0,0 +1 @@\n+x\n", "../evil"),
        (None, "--- /dev/null\n+++ b/.git/hooks/post-checkout\n@@ -0,0 +1 @@\n+x\n", ".git/hooks"),
    ],
)
def test_the_error_says_why_code_cannot_be_restored(checkout, tmp_path, commit, diff, said):
    commit = git(checkout, "rev-parse", "HEAD").strip() if commit is None else commit
    with pytest.raises(RequestError) as refused:
        provenance.restore(checkout / "package", commit, diff.encode(), tmp_path / "then")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.rglob("evil"))
    assert not list(tmp_path.rglob("post-checkout"))


@needs_git
def test_nothing_is_restored_over_other_files(checkout, tmp_path):
    commit = git(checkout, "rev-parse", "HEAD").strip()
    for target in (checkout, checkout / "note.txt"):
        with pytest.raises(RequestError, match="--checkout needs a new or an empty folder"):
            provenance.restore(checkout / "package", commit, b"", target)
    with pytest.raises(RequestError, match="cannot be restored"):
        provenance.restore(tmp_path, commit, b"", tmp_path / "then")


@needs_git
@pytest.mark.parametrize("add", [False, True], ids=["untracked", "staged"])
def test_the_diff_of_a_repository_without_commits_has_all_files(empty, tmp_path, add):
    if add:
        git(empty, "add", ".")
    state = code_state(empty / "package")
    assert (state.commit, state.dirty) == (None, True)
    assert state.branch == git(empty, "symbolic-ref", "--short", "HEAD").strip()
    clean = tmp_path / "clean"
    clean.mkdir()
    git(clean, "init", "--quiet")
    (tmp_path / "code.diff").write_bytes(state.diff.encode())
    git(clean, "apply", str(tmp_path / "code.diff"))
    recorded = contents(empty)
    if not add:
        recorded = {name: data for name, data in recorded.items() if name.startswith(("package/", "conf/"))}
    assert contents(clean) == recorded


@needs_git
def test_a_long_diff_is_cut_with_a_note(checkout):
    (checkout / "package" / "long.py").write_text("value = 1\n" * 200_000)
    state = code_state(checkout / "package")
    *_, before, last = state.diff.splitlines()
    assert last.startswith("# cut: the whole diff has 22")
    assert before == "+value = 1"
    assert DIFF_LIMIT - 100 < len(state.diff) < DIFF_LIMIT + 100
    assert state.dirty
    assert state.problems[0].startswith("code.diff is cut, so --checkout cannot restore the code: it has 2,2")


@needs_git
def test_a_second_worktree_has_its_own_branch_and_changes(checkout, tmp_path):
    git(checkout, "worktree", "add", "--quiet", "-b", "other", str(tmp_path / "tree"))
    (tmp_path / "tree" / "package" / "model.py").write_text("layers = 9\n")
    state = code_state(tmp_path / "tree" / "package")
    assert state.branch == "other"
    assert "+layers = 9" in state.diff
    assert not code_state(checkout / "package").dirty


@needs_git
def test_variables_of_a_git_hook_are_ignored(checkout, tmp_path, monkeypatch):
    expected = code_state(checkout / "package")
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert code_state(checkout / "package") == expected


@needs_git
@pytest.mark.parametrize("place", ["venv/lib/package", "lib/site-packages/package"], ids=["ignored", "not ignored"])
def test_a_package_installed_in_another_repository_has_no_commit(checkout, place):
    shutil.copytree(checkout / "package", checkout / place)
    assert code_state(checkout / place) == UNKNOWN


def test_without_a_repository_the_state_is_unknown_without_a_message(tmp_path):
    assert code_state(tmp_path) == UNKNOWN
    assert Code(commit=None, branch=None, dirty=None, diff="", problems=()) == UNKNOWN


def test_without_git_the_state_is_unknown_with_a_message(empty_path, checkout_without_git):
    found = code_state(checkout_without_git)
    assert found._replace(problems=()) == UNKNOWN
    (problem,) = found.problems
    assert problem.startswith("code.commit is not recorded, git failed: ")
    assert "'git'" in problem


@pytest.fixture
def checkout_without_git(tmp_path: Path) -> Path:
    """The folder of a package beside a folder named .git."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "package").mkdir()
    return tmp_path / "package"


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH without programs."""
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))


@needs_git
def test_a_repository_that_git_refuses_is_unknown_with_one_line(checkout):
    (checkout / ".git" / "config").write_text("[broken\n")
    found = code_state(checkout / "package")
    assert found._replace(problems=()) == UNKNOWN
    (problem,) = found.problems
    assert "bad config" in problem
    assert "\n" not in problem


@needs_git
def test_the_commit_is_recorded_if_the_diff_takes_too_long(checkout, monkeypatch):
    def slow(*_: object) -> bytes:
        raise subprocess.TimeoutExpired("git diff-index", 10)

    monkeypatch.setattr(provenance.git, "_diff", slow)
    state = code_state(checkout / "package")
    assert state.commit == git(checkout, "rev-parse", "HEAD").strip()
    assert state.dirty is None
    assert state.diff.startswith("# not recorded: ")
    assert "timed out" in state.problems[0]


def fresh(folder: Path) -> dict[str, str]:
    """The factors that a new process finds."""
    provenance.package_files.cache_clear()
    return provenance.source_files(folder, UserCode({}, frozenset()))


def test_the_source_digest_depends_only_on_paths_and_contents_of_python_files(tmp_path):
    def write(folder: str, files: dict[str, str]) -> str:
        for name, text in files.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(text)
        return source.source_digest(fresh(tmp_path / folder))

    digest = write("one", {"a.py": "1", "sub/b.py": "2"})
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert write("same", {"sub/b.py": "2", "a.py": "1"}) == digest
    assert write("same", {"notes.md": "x", "__pycache__/a.cpython-311.pyc": "x"}) == digest
    others = [
        {"a.py": "1", "sub/b.py": "3"},
        {"a.py": "1", "b.py": "2"},
        {"a.py": "1"},
        {"a.py": "1sub/b.py2"},
    ]
    digests = {write(f"other{i}", files) for i, files in enumerate(others)}
    assert len(digests | {digest}) == 5


def test_factors_change_with_code_that_computes_and_not_with_code_that_records(tmp_path, monkeypatch):
    def facts(own="1", plots="1", **files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        (tmp_path / "figures").mkdir(exist_ok=True)
        (tmp_path / "figures" / "run.py").write_text(plots)
        provenance.package_files.cache_clear()
        return provenance.environment_factors(
            tmp_path, UserCode({"code/own.py": own.encode()}, frozenset()), "abc", 2, "cpu"
        )

    first = facts(models="1", mine="1")
    assert facts(plots="2") == first
    assert facts(models="2")["source"] != first["source"]
    assert facts(models="1") == first
    assert facts(own="2")["source"] != first["source"]
    assert facts(mine="2")["source"] != first["source"]  # what a user puts into the package counts
    monkeypatch.setattr(environment, "PACKAGES", ("matplotlib", "numpy"))
    assert facts()["versions"].keys() == {"python", "numpy"}


COMPUTES = """def rate(step):
    return step / 2


class Layer:
    def call(self, x):
        return rate(x)
"""
SAME = (
    "# a comment\n" + COMPUTES,
    '"""A module."""\n' + COMPUTES.replace("step):\n", 'step):\n    """Half the step."""\n'),
    COMPUTES.replace("class Layer:\n", 'class Layer:\n    """A layer."""\n\n').replace(
        "x):\n", 'x):\n        r"""Doc."""\n'
    ),
    COMPUTES.replace("step / 2", "(step /\n        2)  # wrapped"),
)
OTHER = (
    COMPUTES.replace("/ 2", "/ 3"),
    COMPUTES.replace("/ 2", "/ 2.0"),
    COMPUTES.replace("return rate(x)", "rate(x)"),
    COMPUTES.replace("Layer", "Block"),
    COMPUTES.replace("return step", 'x = "no docstring"\n    return step'),
    COMPUTES + "(",  # hashed by its bytes
    COMPUTES + "((",
    "",
)


@pytest.mark.parametrize("place", ["package", "user"])
def test_an_edit_changes_the_identity_unless_it_is_a_comment_or_docstring(place, tmp_path):
    def digest(text):
        (tmp_path / "models.py").write_text(text if place == "package" else "")
        provenance.package_files.cache_clear()
        own = UserCode({"code/own.py": text.encode()} if place == "user" else {}, frozenset())
        return provenance.environment_factors(tmp_path, own, "abc", 2, "cpu")["source"]

    first = digest(COMPUTES)
    assert [digest(text) for text in SAME] == [first] * len(SAME)
    assert len({first, *map(digest, OTHER)}) == 1 + len(OTHER)
    assert digest(COMPUTES) == first


def test_digests_of_contents_and_of_syntax_trees_are_recorded(tmp_path):
    own = UserCode({"code/own.py": b"x = 1  # one"}, frozenset())
    (tmp_path / "models.py").write_text("y = 1")
    (tmp_path / "train.py").write_text("z = 1")
    provenance.package_files.cache_clear()
    files, trees = provenance.source_files(tmp_path, own), provenance.source_trees(tmp_path, own)
    assert files["code/own.py"] == hashlib.sha256(b"x = 1  # one").hexdigest()
    assert files.keys() == {"models.py", "train.py", "code/own.py"}
    assert trees.keys() == {"models.py", "code/own.py"}


BITS = ("XLA_FLAGS", "TF_XLA_FLAGS", "NVIDIA_TF32_OVERRIDE", "TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA")


@pytest.fixture
def facts(tmp_path, monkeypatch):
    """Factors of a process without any variable that changes the bits."""
    for name in environment.NUMERIC_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return lambda packages=(): provenance.environment_factors(
        tmp_path, UserCode({}, frozenset(packages)), "abc", 2, "cpu"
    )


@pytest.mark.parametrize("name", [*BITS, "KERAS_BACKEND", "TF_DETERMINISTIC_OPS"])
def test_factors_change_with_each_variable_that_changes_bits(name, facts, monkeypatch):
    before = facts()
    monkeypatch.setenv(name, "")
    assert facts()["variables"] == before["variables"] == {}
    monkeypatch.setenv(name, "1")
    assert facts()["variables"] == {name: "1"}
    assert facts() != before


def test_factors_include_the_processor_and_its_instruction_sets(facts, monkeypatch):
    def on(cpuinfo):
        environment.processor.cache_clear()
        monkeypatch.setattr(Path, "read_text", lambda self, **_: cpuinfo)
        return facts()["processor"]

    amd = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx sse4_2 rdtscp\n\nprocessor\t: 1\n"
    assert on(amd) == {"cpu": "AMD EPYC", "instructions": "avx avx2 sse4_2"}
    assert on(amd.replace("avx2", "avx512f"))["instructions"] == "avx avx512f sse4_2"
    assert on("processor : 0\nFeatures : fp asimd sve\n")["instructions"] == "asimd sve"
    environment.processor.cache_clear()


def test_factors_change_with_the_settings_file_of_keras(facts, tmp_path):
    assert facts()["keras_config"] == environment.KERAS_DEFAULTS
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "keras.json").write_text('{"floatx": "float64", "backend": "tensorflow"}')
    assert facts()["keras_config"] == {**environment.KERAS_DEFAULTS, "floatx": "float64"}
    (tmp_path / "keras" / "keras.json").write_text("[]")
    assert facts()["keras_config"] == environment.KERAS_DEFAULTS


def test_factors_include_the_versions_of_packages_that_user_modules_import(facts):
    assert "rich" not in facts()["versions"]
    found = facts(["rich", "yaml", "numpy"])["versions"]
    assert found["rich"] == metadata.version("rich")
    assert found["pyyaml"] == metadata.version("PyYAML")
    assert f"rich=={found['rich']}" in provenance.requirements({"rich"})
    assert facts(["rich"]).keys() == facts().keys()


def test_versions_and_requirements_name_installed_packages(monkeypatch):
    import numpy

    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package-anywhere", "matplotlib"))
    found = environment.versions()
    assert list(found) == ["python", "numpy", "matplotlib"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["numpy"] == numpy.__version__
    assert provenance.requirements() == [f"matplotlib=={found['matplotlib']}", f"numpy=={numpy.__version__}"]


def test_hardware_is_this_machine():
    found: dict[str, Any] = provenance.hardware()
    assert found["pid"] == os.getpid()
    assert 1 <= found["cores"] <= os.cpu_count()
    assert found["memory"] > 2**28
    assert all(found.values())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot pin processes")
def test_cores_are_limited_to_those_of_the_process():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert provenance.hardware()["cores"] == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_environment_record_is_json_without_secrets(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_test")
    monkeypatch.setenv("TF_VAR_password", "hush")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    found = provenance.environment_record()
    assert set(found) == {"python", "packages", "hardware", "variables"}
    assert "python" not in found["packages"]
    assert found["variables"]["XLA_FLAGS"] == "--xla_test"
    assert "PYTHONHASHSEED" not in found["variables"]
    assert "hush" not in json.dumps(found)


def test_is_gone_tells_running_from_ended_processes(monkeypatch):
    own = provenance.process()
    assert not provenance.is_gone(own)
    *host, pid, started = own.split(" ")
    assert provenance.is_gone(" ".join([*host, pid, "12.34"]))  # its number was given to another
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert provenance.is_gone(" ".join([*host, str(ended.pid), started]))
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    assert not provenance.is_gone(" ".join([*host, str(ended.pid), started]))


@pytest.mark.skipif(sys.platform != "linux", reason="goes by Linux's files of devices")
@pytest.mark.parametrize(
    ("files", "visible", "found"),
    [
        ((), None, []),
        ((), "0", []),
        (("nvidiactl", "nvidia0", "nvidia2", "nvidia10", "nvidia-uvm"), None, ["0", "2", "10"]),
        (("nvidiactl", "nvidia0", "nvidia1"), "1", ["1"]),
        (("nvidiactl", "nvidia0"), "GPU-a1,GPU-b2", ["GPU-a1", "GPU-b2"]),
        (("nvidiactl", "nvidia0"), "", []),
        (("nvidiactl", "nvidia0"), "-1", []),
        (("dxg",), None, ["0"]),
        (("kfd",), None, ["0"]),
    ],
)
def test_gpus_are_those_of_the_drivers_that_this_process_may_use(files, visible, found, tmp_path, monkeypatch):
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(environment, "_DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert provenance.gpus() == found
