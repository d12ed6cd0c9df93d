"""The branching and merging dense network, SGD, batch 32, one-hot labels."""

import keras

from benchmarks.peers import EpochEnds, arguments, load_mnist

settings = arguments(epochs=10, batch_size=32, optimizer="sgd")
(x_train, y_train), (x_test, y_test) = load_mnist()
x_train = x_train.reshape(-1, 784).astype("float32") / 255
x_test = x_test.reshape(-1, 784).astype("float32") / 255
y_train, y_test = keras.utils.to_categorical(y_train, 10), keras.utils.to_categorical(y_test, 10)

inputs = keras.Input((784,))
a = keras.layers.Dense(100, activation="relu")(inputs)
b = keras.layers.Dense(100, activation="relu")(a)
c = keras.layers.Dense(100, activation="relu")(a)
both = keras.layers.add([b, c])
outputs = keras.layers.Dense(10, activation="softmax")(keras.layers.concatenate([both, both, c]))
model = keras.Model(inputs, outputs)
model.compile(optimizer=settings.optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
model.fit(
    x_train,
    y_train,
    batch_size=settings.batch_size,
    epochs=settings.epochs,
    validation_data=(x_test, y_test),
    callbacks=[EpochEnds()],
)
