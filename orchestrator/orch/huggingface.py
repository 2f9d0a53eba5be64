"""Hugging Face's Trainer under orch: `orch.huggingface.Checkpoint(trainer)`. Imports transformers, the user's own."""

from __future__ import annotations

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "orch.huggingface needs transformers in this environment: `pip install transformers accelerate`"
    ) from error

from orch_workers.training.hf_trainer import callback_class

Checkpoint = callback_class(TrainerCallback)

__all__ = ["Checkpoint"]
