"""tf.train.Checkpoint and CheckpointManager, after TensorFlow's own guide. It knows nothing of orch."""

import tensorflow as tf
from sklearn.datasets import load_digits  # ships with scikit-learn (from the UCI repository, CC BY 4.0)

STEPS = 60

tf.keras.utils.set_random_seed(0)
digits = load_digits()
features = (digits.data / 16).astype("float32")
dataset = tf.data.Dataset.from_tensor_slices((features, digits.target)).repeat().batch(64)
iterator = iter(dataset)

net = tf.keras.Sequential(
    [tf.keras.Input((64,)), tf.keras.layers.Dense(32, "relu"), tf.keras.layers.Dense(10)]
)
opt = tf.keras.optimizers.Adam(0.01)
loss_fn = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@tf.function
def train_step(x, y):
    with tf.GradientTape() as tape:
        loss = loss_fn(y, net(x))
    opt.apply_gradients(
        zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables, strict=True)
    )
    return loss


opt.build(net.trainable_variables)
ckpt = tf.train.Checkpoint(step=tf.Variable(0), optimizer=opt, net=net, iterator=iterator)
manager = tf.train.CheckpointManager(ckpt, "./tf_ckpts", max_to_keep=3)
ckpt.restore(manager.latest_checkpoint)
if manager.latest_checkpoint:
    print(f"Restored from {manager.latest_checkpoint}")
else:
    print("Initializing from scratch.")

while int(ckpt.step) < STEPS:
    loss = train_step(*next(iterator))
    ckpt.step.assign_add(1)
    if int(ckpt.step) % 10 == 0:
        save_path = manager.save()
        print(f"Saved checkpoint for step {int(ckpt.step)}: {save_path}, loss {loss.numpy():.2f}")
