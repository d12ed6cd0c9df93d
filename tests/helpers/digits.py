"""Small data sets."""

from mnist_exp import data


def small(images=1000, validation=200):
    """A thousand digits: 15 full batches of 64 and one of 40."""
    digits = data.digits()
    cut = data.Split(digits.train.images[:images], digits.train.labels[:images])
    return digits._replace(train=cut, validation=data.Split(*(a[:validation] for a in digits.validation)))
