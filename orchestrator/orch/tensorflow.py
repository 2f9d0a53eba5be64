"""TensorFlow 1 style under orch: `orch.tensorflow.SessionHook` and `orch.tensorflow.Saver`. Imports TensorFlow."""

from __future__ import annotations

try:
    import tensorflow as tf
except ImportError as error:
    raise ImportError(
        "orch.tensorflow needs TensorFlow in this environment: `pip install tensorflow`"
    ) from error

from orch_workers.training.tf_session import hook_class, saver_class

SessionHook = hook_class(tf)
Saver = saver_class(tf)

__all__ = ["Saver", "SessionHook"]
