"""One hidden layer of 128, Adam, batch 128."""

import keras

from benchmarks.peers import EpochEnds, arguments, load_mnist

settings = arguments(epochs=8, batch_size=128, optimizer="adam")
(x_train, y_train), (x_test, y_test) = load_mnist()
x_train, x_test = x_train.astype("float32") / 255, x_test.astype("float32") / 255

model = keras.Sequential(
    [
        keras.Input((28, 28)),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(10),
    ]
)
model.compile(
    optimizer=settings.optimizer,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(
    x_train,
    y_train,
    batch_size=settings.batch_size,
    epochs=settings.epochs,
    validation_data=(x_test, y_test),
    callbacks=[EpochEnds()],
)
