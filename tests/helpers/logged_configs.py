"""A logged config, and what a stranger may have changed in it."""

GOOD = """\
experiment: null
name: mlp-adam
seed: 0
model: {_target_: mnist_exp.models.mlp, hidden: [3], activation: relu, dropout: 0.0, batch_norm: false}
optimizer: {_target_: keras.optimizers.Adam, learning_rate: 1.0e-3}
schedule: {_target_: mnist_exp.schedules.constant}
data: {_target_: mnist_exp.data.digits, validation: 0.2, split_seed: 0}
augment: {_target_: null}
trainer: {epochs: 2, batch_size: 64}
tracking: {uri: null, experiment: mnist_exp}
"""
MODEL = "{_target_: mnist_exp.models.mlp, hidden: [3], activation: relu, dropout: 0.0, batch_norm: false}"
ADAM = "{_target_: keras.optimizers.Adam, learning_rate: 1.0e-3}"
DIGITS = "{_target_: mnist_exp.data.digits, validation: 0.2, split_seed: 0}"


def changed(line, by):
    assert line in GOOD
    return GOOD.replace(line, by)


def node(line, **keys):
    return changed(line, "{" + ", ".join(f"{key}: {value}" for key, value in keys.items()) + "}")


def model(target, **keys):
    return node(MODEL, _target_=target, **keys)


def data(target, **keys):
    return node(DIGITS, _target_=target, validation=0.2, **keys)


def optimizer(target, **keys):
    return node(ADAM, _target_=target, learning_rate=0.1, **keys)
