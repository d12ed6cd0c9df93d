"""A run's record from strangers: archives and files that are damaged, too large, or something else."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest

from mnist_exp.reproduction.record import FILES, Record, RecordError, from_archive, from_folder, write_archive
from mnist_exp.training.checkpoint import digest

WEIGHTS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(3, np.float32)]
ROWS = b'{"step": 1, "time": 1.5, "weights": "ab", "train_loss": 2.0}\n{"step": 0, "test_loss": NaN}\n'
KEPT = {
    "config.yaml": b"seed: 0\n",
    "metrics.jsonl": ROWS,
    "environment.json": b'{"python": "3.11"}',
    "code.diff": b"x",
}
RECORD = Record("run f00", "f00", "mlp-s0", KEPT, {"threads": "2"})


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "run.zip"
    write_archive(RECORD, WEIGHTS, path)
    return path


def test_an_archive_gives_back_what_was_put_into_it(packed):
    found = from_archive(packed)
    assert {name: found.files[name] for name in KEPT} == KEPT
    assert found[1:3] == ("f00", "mlp-s0")
    assert found.tags == RECORD.tags
    assert found.environment() == {"python": "3.11"}
    assert found.rows()[1] == {"weights": "ab", "train_loss": 2.0}
    assert np.isnan(found.rows()[0]["test_loss"])


def test_weights_are_plain_arrays_in_order(packed):
    with zipfile.ZipFile(packed) as members, np.load(io.BytesIO(members.read("weights.npz"))) as arrays:
        assert arrays.files == ["0", "1"]
        assert digest([arrays[name] for name in arrays.files]) == digest(WEIGHTS)
        np.testing.assert_array_equal(arrays["0"], WEIGHTS[0])


def test_the_same_record_gives_the_same_bytes_and_overwrites_nothing(packed, tmp_path):
    write_archive(RECORD, WEIGHTS, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    with pytest.raises(RecordError, match="cannot be written: File exists"):
        write_archive(RECORD, WEIGHTS, packed)
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_archive(RECORD, [np.array([{}])], tmp_path / "pickle.zip")


def zipped(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def claiming(size):
    """An archive whose list of files says that config.yaml is small, while it holds `size` zeros."""
    content = bytearray(zipped([("config.yaml", b"\0" * size)]))
    entry = content.rindex(b"PK\1\2")
    content[entry + 24 : entry + 28] = struct.pack("<I", 10)
    return bytes(content)


GOOD = ("config.yaml", b"seed: 0\n")
NO_ARCHIVE = {
    "no zip": (b"hello", "is not an archive of a run"),
    "empty": (b"", "is not an archive of a run"),
    "a pickle": (b"\x80\x04K\x01.", "is not an archive of a run"),
    "no config": (zipped([("metrics.jsonl", b"")]), "is not an archive of a run: it may hold"),
    "parent": (zipped([GOOD, ("../evil.py", b"x")]), "'../evil.py'"),
    "absolute": (zipped([GOOD, ("/etc/passwd", b"x")]), "'/etc/passwd'"),
    "backslash": (zipped([GOOD, ("..\\evil.py", b"x")]), "evil.py"),
    "folder": (zipped([GOOD, ("config.yaml/", b"")]), "'config.yaml/'"),
    "other file": (zipped([GOOD, ("model.pkl", b"x")]), "'model.pkl'"),
    "many files": (zipped([GOOD, *((f"{n}.txt", b"") for n in range(2000))]), "it lists too many files"),
    "bomb": (zipped([("config.yaml", b"\0" * 10**8)]), "config.yaml: must have at most 65,536 bytes"),
    "bomb that lies": (claiming(10**7), "damaged"),
    "bomb in rows": (
        zipped([GOOD, ("metrics.jsonl", b"\0" * (FILES["metrics.jsonl"] + 1))]),
        "metrics.jsonl: must have",
    ),
    "run.json": (zipped([GOOD, ("run.json", b'{"run_id": 3}')]), "run.json must hold"),
    "run.json tags": (zipped([GOOD, ("run.json", b'{"tags": {"a": {}}}')]), "run.json must hold"),
    "run.json escape": (zipped([GOOD, ("run.json", b'{"run_id": "\\u001b]0;x"}')]), "run.json must hold"),
    "run.json deep": (zipped([GOOD, ("run.json", b"[" * 10**5)]), "run.json: is not JSON"),
}


@pytest.mark.parametrize("case", NO_ARCHIVE)
def test_what_is_no_archive_is_refused_in_a_line(case, tmp_path):
    content, said = NO_ARCHIVE[case]
    path = tmp_path / "run.zip"
    path.write_bytes(content)
    with pytest.raises(RecordError) as refused:
        from_archive(path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_file_twice_is_refused(tmp_path):
    (tmp_path / "run.zip").write_bytes(zipped([GOOD, GOOD]))
    with pytest.raises(RecordError, match="is not an archive of a run"):
        from_archive(tmp_path / "run.zip")


def test_a_damaged_archive_is_refused(packed):
    whole = packed.read_bytes()
    with zipfile.ZipFile(packed) as members:
        start = members.getinfo("config.yaml").header_offset + 30 + len("config.yaml")
    for content in (
        whole[:-30],
        whole[: len(whole) // 2],
        whole[:start] + bytes([whole[start] ^ 255]) + whole[start + 1 :],
    ):
        packed.write_bytes(content)
        with pytest.raises(RecordError):
            from_archive(packed)
    with pytest.raises(RecordError, match="cannot be read: No such file"):
        from_archive(packed.with_name("nowhere.zip"))


def test_what_lies_beside_a_config_is_its_record(tmp_path):
    for name, content in KEPT.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.yaml").rename(tmp_path / "mine.yaml")
    (tmp_path / "config.yaml").write_text("another")
    (tmp_path / "weights.npz").write_text("not read")
    found = from_folder(tmp_path / "mine.yaml")
    assert found.files == KEPT
    (tmp_path / "mine.yaml").write_bytes(b"x" * (FILES["config.yaml"] + 1))
    with pytest.raises(RecordError, match="must have at most"):
        from_folder(tmp_path / "mine.yaml")
    with pytest.raises(RecordError, match="cannot be read: No such file"):
        from_folder(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "not json",
        "[1]",
        '{"train_loss": 1}',
        '{"step": -1}',
        '{"step": 1.0}',
        '{"step": true}',
        '{"step": 1, "train_loss": "x"}',
        '{"step": 1, "train_loss": true}',
        '{"step": 1, "train_loss": 1' + "0" * 400 + "}",
        '{"step": 1, "train_loss": 1' + "0" * 5000 + "}",
        '{"step": 1, "weights": 3}',
        '{"step": 1, "a": ' + "[" * 10**5,
    ],
)
def test_rows_that_are_none_are_refused(line):
    record = RECORD._replace(files={"metrics.jsonl": ROWS + line.encode() + b"\n"})
    with pytest.raises(RecordError, match=r"metrics\.jsonl line 3"):
        record.rows()


def test_rows_that_were_cut_anywhere_are_read_up_to_there():
    for end in range(len(ROWS) + 1):
        rows = RECORD._replace(files={"metrics.jsonl": ROWS[:end]}).rows()
        ended = ROWS[:end].count(b"\n") + ROWS[:end].endswith(b"}")  # a row needs no more than its bracket
        assert sorted(rows) == [[], [1], [0, 1]][ended]


def test_an_environment_that_was_cut_anywhere_counts_as_absent():
    content = json.dumps({"python": "3.11", "packages": {"keras": "3"}}).encode()
    for end in range(len(content)):
        assert RECORD._replace(files={"environment.json": content[:end]}).environment() == {}


def test_json_of_another_kind_is_refused():
    assert RECORD._replace(files={}).environment() == {}
    with pytest.raises(RecordError, match="must be a JSON object, got a list"):
        RECORD._replace(files={"environment.json": json.dumps([1]).encode()}).environment()
