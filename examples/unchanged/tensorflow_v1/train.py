"""The 1.x style: a graph, a session and a Saver, 1,400 steps saved every 200. It knows nothing of orch."""

import tensorflow.compat.v1 as tf
from sklearn.datasets import load_iris  # ships with scikit-learn (Fisher 1936, public domain)

tf.disable_v2_behavior()
tf.set_random_seed(0)
STEPS, SAVE_EVERY = 1400, 200

iris = load_iris()
x = tf.placeholder(tf.float32, (None, 4))
y = tf.placeholder(tf.int64, (None,))
weights = tf.get_variable("weights", (4, 3))
bias = tf.get_variable("bias", (3,), initializer=tf.zeros_initializer())
loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x @ weights + bias))
train_op = tf.train.AdamOptimizer(0.01).minimize(loss)
saver = tf.train.Saver()

tf.gfile.MakeDirs("models/iris")
with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    latest = tf.train.latest_checkpoint("models/iris")
    first = 0
    if latest:
        saver.restore(session, latest)
        first = int(latest.rsplit("-", 1)[1])
        print(f"restored step {first}")
    for step in range(first + 1, STEPS + 1):
        _, value = session.run([train_op, loss], {x: iris.data, y: iris.target})
        if step % SAVE_EVERY == 0:
            saver.save(session, "models/iris/model.ckpt", global_step=step)
            print(f"step {step}, loss = {value:.4f}")
