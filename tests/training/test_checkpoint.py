"""What a checkpoint holds, and what is left of one that was not finished."""

import numpy as np
import pytest

from mnist_exp.training import checkpoint
from mnist_exp.training.checkpoint import Checkpoint


def written(folder, *epochs):
    for epoch in epochs:
        checkpoint.save(folder, Checkpoint(epoch, {"loss": 0.1 * epoch}, [np.full(3, epoch, np.float32)]))
    return sorted(folder.iterdir())


def test_comes_back_to_the_last_bit(tmp_path):
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3) / 7, np.uint32([2**32 - 1]), np.float32(0.1), np.int64(7)]
    state = {"rows": [[{"loss": 0.1 + 0.2, "val_loss": float("inf")}, "ab"]], "best": None, "stopped": False}
    checkpoint.save(tmp_path / "new" / "folder", Checkpoint(12, state, arrays))
    found = checkpoint.load(tmp_path / "new" / "folder")
    assert (found.epoch, found.state) == (12, state)
    for ours, theirs in zip(arrays, found.arrays, strict=True):
        assert (np.asarray(ours).dtype, np.asarray(ours).shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_array_equal(ours, theirs)


def test_arrays_of_callbacks_come_back(tmp_path):
    sums = [np.arange(6.0).reshape(2, 3), np.array([0.1], np.float32)]
    checkpoint.save(tmp_path, Checkpoint(1, {"callbacks": {"swa": {"count": 3, "sums": sums}}}, [np.array([7])]))
    found = checkpoint.load(tmp_path)
    assert found.arrays[0].tolist() == [7]
    swa = found.state["callbacks"]["swa"]
    assert swa["count"] == 3
    for before, after in zip(sums, swa["sums"], strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    with pytest.raises(TypeError, match="what JSON can hold, and NumPy arrays, got set"):
        checkpoint.save(tmp_path, Checkpoint(2, {"callbacks": {"own": {1, 2}}}, []))


def test_two_are_kept_and_the_newest_is_loaded(tmp_path):
    assert [path.name[:7] for path in written(tmp_path, 8, 9, 10, 11)] == ["000010-", "000011-"]
    assert checkpoint.load(tmp_path).epoch == 11


def test_a_damaged_one_is_passed_over(tmp_path):
    *_, newest = written(tmp_path, 1, 2)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert checkpoint.load(tmp_path).epoch == 1
    newest.write_bytes(b"")
    assert checkpoint.load(tmp_path).epoch == 1


def test_one_that_was_cut_anywhere_is_passed_over(tmp_path):
    *_, newest = written(tmp_path, 1, 2)
    content = newest.read_bytes()
    for end in range(len(content)):
        newest.write_bytes(content[:end])
        assert checkpoint.load(tmp_path).epoch == 1


def test_an_unfinished_one_is_none(tmp_path):
    assert checkpoint.load(tmp_path / "missing") is None
    (path,) = written(tmp_path, 1)
    path.rename(tmp_path / "unfinished")
    assert checkpoint.load(tmp_path) is None
