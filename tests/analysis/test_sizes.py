"""The error against the number of training images: which rows make a curve, and what the report says of it."""

import pytest

from mnist_exp.analysis import leaderboard, pictures, report, sizes
from tests.helpers.tracked_runs import ALL, METRIC, run

SIZES = (100, 400, 1600, 6400)


def sized(number, images, accuracy, **settings):
    tags = {"data.base": "whole", "data.fingerprint": f"{images}", "data.train_images": str(images)}
    return run(number, tags=tags, accuracy=accuracy, data__train_size=images, **settings)


def board_of(*records, metric=METRIC):
    return leaderboard.board(records, ALL, metric)


def study(limit=0.05, first=0):
    """Errors of limit + 4 / sqrt(n). Fewer images have more epochs."""
    return [
        sized(first + n, images, 1 - limit - 4 / images**0.5, model__width=limit, trainer__epochs=10_000 // images)
        for n, images in enumerate(SIZES)
    ]


def test_each_setting_has_a_curve_and_epochs_that_follow_from_the_size_do_not_divide_it():
    (table,) = board_of(*study(), *study(limit=0.1, first=100)).tables
    first, second = sorted(sizes.curves(table, METRIC), key=lambda curve: curve.label)
    assert (first.label, second.label) == ("width=0.05", "width=0.1")
    assert first.images == [*SIZES]
    assert first.errors == pytest.approx([0.45, 0.25, 0.15, 0.1])
    assert (first.law.limit, first.law.scale, first.law.exponent) == pytest.approx((0.05, 4, 0.5), rel=1e-3)
    assert second.law.limit == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    "records",
    [
        study()[:3],  # too few sizes
        [*study()[:3], sized(9, 6400, 1.0)],  # an error of 0
        [record._replace(tags={"kind": "run"}) for record in study()],  # runs that did not record their size
        [run(n, model__width=n, accuracy=0.5) for n in range(5)],  # one size
    ],
)
def test_other_rows_have_no_curve(records):
    (table,) = board_of(*records).tables
    assert list(sizes.curves(table, METRIC)) == []
    assert list(pictures._sizes(table, METRIC)) == []


def test_the_report_gives_the_law_and_the_picture_shows_it():
    board = board_of(*study())
    document = list(report.blocks(board, report.examine(board, None, 10, lambda row: None), 10))
    grid = document[document.index(report.Heading("Number of training images")) + 1]
    assert grid.rows == [["all", "100 to 6,400", "5.00", "400", "0.50", "8.54 at 12,800"]]
    (picture,) = pictures._sizes(board.tables[0], METRIC)
    assert "training images" in picture.svg
    losses = [record._replace(metrics={"final_val_loss": 1 - record.metrics[METRIC]}) for record in study()]
    (table,) = board_of(*losses, metric="final_val_loss").tables
    (curve,) = sizes.curves(table, "final_val_loss")  # the lower the better: the loss is the error
    assert curve.law.limit == pytest.approx(0.05, rel=1e-3)
