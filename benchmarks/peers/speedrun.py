"""The net and the recipe of the preset `speedrun` in Keras: one epoch with one cycle of the learning rate."""

import keras

from benchmarks.peers import EpochEnds, arguments, load_mnist

settings = arguments(epochs=1, batch_size=256, optimizer="adam")
(x_train, y_train), (x_test, y_test) = load_mnist()
x_train, x_test = x_train[..., None].astype("float32") / 255, x_test[..., None].astype("float32") / 255
steps = settings.epochs * -(-len(x_train) // settings.batch_size)
rise = round(0.3 * steps)

model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(24, 5, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
rate = keras.optimizers.schedules.CosineDecay(0.0004, steps - rise, alpha=0.0001, warmup_target=0.01, warmup_steps=rise)
model.compile(
    optimizer=keras.optimizers.Adam(rate, beta_1=0.7, beta_2=0.9),
    loss="sparse_categorical_crossentropy",
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
