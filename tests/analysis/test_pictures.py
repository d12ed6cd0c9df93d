"""A report shows test images only of the data set that the runs were tested on."""

import numpy as np
import pytest

from mnist_exp import data
from mnist_exp.analysis import leaderboard, pictures
from tests.helpers import tracked_runs


@pytest.mark.parametrize(
    ("params", "fingerprint", "shown"),
    [
        ({"data._target_": "mnist_exp.data.digits"}, data.digits().fingerprint, True),
        (
            {"data._target_": "mnist_exp.data.digits", "data.validation": "test", "data.split_seed": "0"},
            data.digits(validation="test").fingerprint,
            True,
        ),
        ({"data._target_": "mnist_exp.data.digits"}, "another", False),
        ({"data._target_": "mnist_exp.data.file", "data.path": "other.npz", "data.validation": "1"}, "another", False),
        ({"data._target_": "mnist_exp.data.digits", "data.validation": "nonsense"}, "another", False),
        ({"data._target_": "mnist_exp.data.digits", "data.path": "x"}, "another", False),
        ({"data._target_": "mine.source"}, "another", False),
    ],
)
def test_images_of_other_data_with_equal_labels_are_not_shown(params, fingerprint, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = data.digits()
    inverted = {"x_train": 255 - digits.train.images, "x_test": 255 - digits.test.images}
    np.savez("other.npz", **inverted, y_train=digits.train.labels, y_test=digits.test.labels)
    run = tracked_runs.run(0)._replace(params=params)
    table = leaderboard.Table(
        "x", fingerprint, [leaderboard.LeaderboardRow("x", {}, {(0, 0): run}, 0)], False, [], {}, 0
    )
    found = pictures._dataset(table, digits.test.labels)
    assert (found is not None) == shown
    if shown:
        np.testing.assert_array_equal(found.test.images, digits.test.images)
