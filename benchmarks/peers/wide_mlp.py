"""Hidden layers of 512 and 256, Adam, batch 32."""

import keras

from benchmarks.peers import EpochEnds, arguments, load_mnist

settings = arguments(epochs=5, batch_size=32, optimizer="adam")
(x_train, y_train), (x_test, y_test) = load_mnist()
x_train = x_train.reshape(-1, 784).astype("float32") / 255
x_test = x_test.reshape(-1, 784).astype("float32") / 255

model = keras.Sequential(
    [
        keras.Input((784,)),
        keras.layers.Dense(512, activation="relu"),
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile(optimizer=settings.optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(
    x_train,
    y_train,
    batch_size=settings.batch_size,
    epochs=settings.epochs,
    validation_data=(x_test, y_test),
    callbacks=[EpochEnds()],
)
