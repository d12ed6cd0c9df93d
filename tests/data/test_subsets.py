"""Subsets, rare classes, wrong labels and folds: what is drawn, what stays, and what is refused."""

import copy
import sys
from types import ModuleType

import numpy as np
import pytest

from mnist_exp import data
from mnist_exp.analysis.leaderboard import settings
from mnist_exp.config import ConfigError, check, identity, params, semantic
from mnist_exp.data import DataError, Dataset, Split, Subset, take
from mnist_exp.data.subsets import stratified_order
from mnist_exp.sweep import jobs
from tests.helpers.configs import composed
from tests.helpers.tracked_runs import run

# Of the digits with every key set: other draws would be other experiments under the same name.
FINGERPRINT = "97e254ec7080828475a42c7ea8c0f06dc4768097cc932a75c4e4fd6078dfae6c"


def numbered(*counts: int, validation: int = 50) -> Dataset:
    """Images of one pixel, whose two bytes number them; so many of each class, in an order that mixes the classes."""
    labels = np.random.default_rng(5).permutation(np.repeat(np.arange(len(counts)), counts))
    everything = Split(np.arange(len(labels), dtype="<u2").view(np.uint8).reshape(-1, 1, 2, 1), labels)
    train, held_out, test = (
        Split(everything.images[cut], everything.labels[cut])
        for cut in (slice(validation, None), slice(validation), slice(20))
    )
    return Dataset("numbered", "a test", train, held_out, test, len(counts), "whole")


def numbers(split: Split) -> list[int]:
    return split.images.reshape(-1, 2).copy().view("<u2").ravel().tolist()


def counts(split: Split) -> list[int]:
    return np.bincount(split.labels).tolist()


WHOLE = numbered(500, 300, 200, 50)  # 1,000 training images
TRUE = dict(zip(numbers(WHOLE.train), WHOLE.train.labels.tolist(), strict=True))


def test_a_subset_without_keys_or_of_everything_is_the_data_set_itself():
    everything = Subset(train_size=len(WHOLE.train.labels), label_noise=0.0)
    assert take(WHOLE, Subset(), 0) is take(WHOLE, everything, 0) is WHOLE


@pytest.mark.parametrize("keys", [{}, {"imbalance": 5.0}, {"fold": 2, "folds": 5}])
def test_a_smaller_training_set_is_part_of_a_larger_one_and_has_its_proportions(keys):
    whole = take(WHOLE, Subset(**keys), 3)
    before: set[int] = set()
    for size in (1, 7, 100, 201, 0.6):
        part = take(WHOLE, Subset(train_size=size, **keys), 3)
        found, n = numbers(part.train), len(part.train.labels)
        assert n == (size if isinstance(size, int) else round(size * len(whole.train.labels)))
        assert found == [number for number in numbers(whole.train) if number in set(found)]  # in their original order
        assert before < set(found) < set(numbers(whole.train))
        expected = n * np.array(counts(whole.train)) / len(whole.train.labels)
        assert np.abs(np.bincount(part.train.labels, minlength=4) - expected).max() < 1
        assert numbers(part.validation) == numbers(whole.validation)
        assert part.test is WHOLE.test
        before = set(found)
    assert numbers(take(WHOLE, Subset(train_size=201, **keys), 4).train) != numbers(part.train)


def test_an_order_worked_out_by_hand():
    # Four of class 0 at 1/8, 3/8, 5/8 and 7/8 of their class, two of class 1 at 1/4 and 3/4 of theirs.
    labels, shuffled = np.array([0, 0, 0, 0, 1, 1]), np.array([3, 0, 2, 1, 5, 4])
    assert stratified_order(labels, shuffled).tolist() == [1, 5, 3, 2, 4, 0]


def test_folds_are_disjoint_parts_of_all_images_that_are_not_for_testing():
    parts = [take(WHOLE, Subset(fold=fold, folds=7), 0) for fold in range(7)]
    everything = sorted(numbers(WHOLE.train) + numbers(WHOLE.validation))
    assert sorted(number for part in parts for number in numbers(part.validation)) == everything
    for part in parts:
        assert sorted(numbers(part.train) + numbers(part.validation)) == everything
        assert len(part.validation.labels) == 150
        assert np.abs(np.array(counts(part.validation)) - np.array([500, 300, 200, 50]) / 7).max() < 1
    assert len({part.fingerprint for part in parts}) == 7
    assert {part.base for part in parts} == {"whole"}


@pytest.mark.parametrize("keys", [{}, {"train_size": 400}, {"fold": 0, "folds": 3}])
def test_a_share_of_the_training_labels_is_replaced_by_other_classes(keys):
    clean = take(WHOLE, Subset(**keys), 1)
    before: dict[int, int] = {}
    for noise in (0.05, 0.25, 1.0):
        noisy = take(WHOLE, Subset(label_noise=noise, **keys), 1)
        changed = np.flatnonzero(noisy.train.labels != clean.train.labels)
        assert len(changed) == round(noise * len(clean.train.labels))
        assert set(noisy.train.labels.tolist()) == {0, 1, 2, 3}
        replaced = {numbers(noisy.train)[place]: int(noisy.train.labels[place]) for place in changed}
        assert before.items() < replaced.items()
        assert numbers(noisy.train) == numbers(clean.train)
        assert noisy.validation.labels.tolist() == clean.validation.labels.tolist()
        assert noisy.test is WHOLE.test
        before = replaced
    # All labels replaced: each of the three other classes equally often. Binomial, five standard deviations.
    of_first = np.bincount([label for number, label in before.items() if TRUE.get(number) == 0], minlength=4)
    share = of_first[1:] / of_first.sum()
    assert np.abs(share - 1 / 3).max() < 5 * np.sqrt(2 / 9 / of_first.sum())


def test_rare_classes_follow_the_profile_of_cui():
    balanced = numbered(1000, 1000, 1000, validation=0)
    assert counts(take(balanced, Subset(imbalance=100.0), 0).train) == [1000, 100, 10]
    assert counts(take(balanced, Subset(imbalance=1.0), 0).train) == [1000, 1000, 1000]
    # The ratio holds although the classes differ: the 80 of class 1 allow 160 of class 0 and 40 of class 2.
    assert counts(take(numbered(1000, 80, 500, validation=0), Subset(imbalance=4.0), 0).train) == [160, 80, 40]
    # A part of it keeps the ratio.
    assert counts(take(balanced, Subset(imbalance=100.0, train_size=111), 0).train) == [100, 10, 1]


def test_the_draws_of_one_key_do_not_change_those_of_another():
    few, noisy = (take(WHOLE, Subset(train_size=100, label_noise=noise), 0) for noise in (None, 0.5))
    assert numbers(few.train) == numbers(noisy.train)
    part, noisy = (take(WHOLE, Subset(fold=0, folds=5, label_noise=noise), 0) for noise in (None, 0.5))
    assert numbers(part.validation) == numbers(noisy.validation)


def test_fingerprints_tell_subsets_apart_and_are_the_same_everywhere():
    every = [{"train_size": 100}, {"label_noise": 0.1}, {"imbalance": 2.0}, {"fold": 0, "folds": 5}]
    found = {take(WHOLE, Subset(**keys), seed).fingerprint for keys in every for seed in (0, 1)}
    assert len(found | {"whole"}) == 9
    digits = take(data.digits(), Subset(train_size=200, label_noise=0.1, imbalance=5.0, fold=1, folds=5), 0)
    assert digits.fingerprint == FINGERPRINT
    assert digits.base == data.digits().fingerprint
    assert not digits.train.images.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        digits.train.labels[0] = 3


def test_a_class_without_training_images_is_warned_of():
    part = take(WHOLE, Subset(train_size=4), 0)
    assert part.warnings == ("a test: data.train_size=4 leaves no training image of class 3",)


@pytest.mark.parametrize(
    ("keys", "seed", "said"),
    [
        (
            {"train_size": 1001},
            0,
            "data.train_size=1001 takes 1,001 of the 1,000 training images of numbered; 1 to 1,000",
        ),
        ({"train_size": 1e-4}, 0, "data.train_size=0.0001 takes 0 of the 1,000 training images of numbered"),
        ({"imbalance": 2000.0}, 0, "data.imbalance=2000.0 leaves no training image of class 3 of numbered"),
        ({"fold": 0, "folds": 1051}, 0, "data.folds=1051 is more than the 1,050 images of numbered that are not for"),
        ({"train_size": 10}, "one", "data.split_seed must be an integer of at least 0, got 'one'"),
    ],
)
def test_what_a_data_set_has_too_few_images_for_is_refused_in_one_line(keys, seed, said):
    with pytest.raises(DataError) as error:
        take(WHOLE, Subset(**keys), seed)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("train_size=1.0", "data.train_size must be null, a count of at least 1, or a share between 0 and 1, got 1.0"),
        ("train_size=0", "data.train_size must be null, a count of at least 1, or a share between 0 and 1, got 0"),
        (
            "train_size=true",
            "data.train_size must be null, a count of at least 1, or a share between 0 and 1, got True",
        ),
        ("label_noise=1.5", "data.label_noise must be null or a number from 0 to 1, got 1.5"),
        ("imbalance=0.5", "data.imbalance must be null or a number of at least 1, got 0.5"),
        ("fold=1", "data.fold=1 needs data.folds; sweep=folds runs all folds"),
        ("folds=5", "data.folds=5 needs data.fold; sweep=folds runs all folds"),
        ("fold=5 folds=5", "data.fold must be between 0 and 4 with data.folds=5, got 5"),
        ("fold=0 folds=1", "data.folds must be null or a whole number, at least 2, got 1"),
        (
            "fold=0 folds=5 validation=test",
            "data.folds validates on parts of the training images, got data.validation=t",
        ),
    ],
)
@pytest.mark.parametrize("option", ["auto", "digits"])
def test_keys_that_break_a_rule_are_refused_in_one_line(option, given, said):
    with pytest.raises(ConfigError) as error:
        check(composed(f"data={option}", *(f"data.{one}" for one in given.split())))
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_the_keys_work_for_a_function_of_a_user_without_another_argument(monkeypatch):
    seen: list[object] = []

    def taking(*, validation, train_size=3, fold):
        seen.append((train_size, fold))
        return WHOLE

    own = ModuleType("own")
    vars(own).update(plain=lambda *, validation: WHOLE, taking=taking)
    monkeypatch.setitem(sys.modules, "own", own)
    base = check(composed("data=digits", "trainer.batch_size=8"))

    def load(**node):
        config = copy.deepcopy(base)
        config.data = Subset()._asdict() | {"validation": 0.1} | node
        return jobs.load(config)

    assert load(_target_="own.plain") is not None
    part = load(_target_="own.plain", train_size=100)
    assert numbers(part.train) == numbers(take(WHOLE, Subset(train_size=100), 0).train)
    # An argument of the function's own that is named like a key of ours stays its own.
    assert load(_target_="own.taking", fold=1).fingerprint == "whole"
    assert load(_target_="own.taking", fold="x", train_size="some").fingerprint == "whole"
    assert seen == [(3, 1), ("some", "x")]


def test_data_auto_passes_the_keys_on(monkeypatch):
    monkeypatch.setattr(jobs, "resolve_auto", lambda path: "digits")
    config = check(composed("data=auto", "data.train_size=0.5"))
    jobs.resolve_data(config)
    assert config.data == check(composed("data=digits", "data.train_size=0.5")).data
    assert len(jobs.load(config).train.labels) == 575


def test_a_null_is_as_good_as_no_key_so_that_runs_of_earlier_versions_are_found():
    config = check(composed("data=digits"))
    earlier = copy.deepcopy(config)
    for key in Subset._fields:
        del earlier.data[key]
    assert semantic(config) == semantic(earlier)
    assert identity(config, {}) == identity(earlier, {})
    rows = [settings(run(0)._replace(params=params(each))) for each in (config, earlier)]
    assert rows[0] == rows[1]
    assert params(config)["data.train_size"] == "None"
    for given in ("train_size=100", "label_noise=0.1", "imbalance=2", "fold=0 data.folds=5"):
        other = check(composed("data=digits", *f"data.{given}".split()))
        assert identity(other, {}) != identity(config, {})
    whole, real = (check(composed("data=digits", f"data.imbalance={ratio}")) for ratio in ("2", "2.0"))
    assert identity(whole, {}) == identity(real, {})
