"""`orch.keras.Checkpoint()`: model.fit that survives, on any backend of Keras 3. Imports Keras, the user's own."""

from __future__ import annotations

try:
    import keras
except ImportError as error:
    raise ImportError(
        "orch.keras needs Keras 3 in this environment: `pip install keras`, and a backend"
    ) from error

from orch_workers.training.keras_fit import callback_class

Checkpoint = callback_class(keras)

__all__ = ["Checkpoint"]
