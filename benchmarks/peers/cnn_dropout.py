"""Two convolutions and dropout 0.25, Adam, batch 128."""

import keras

from benchmarks.peers import EpochEnds, arguments, load_mnist

settings = arguments(epochs=5, batch_size=128, optimizer="adam")
(x_train, y_train), (x_test, y_test) = load_mnist()
x_train, x_test = x_train[..., None].astype("float32") / 255, x_test[..., None].astype("float32") / 255

model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.25),
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
