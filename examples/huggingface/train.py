"""A tiny language model from a config, trained by Hugging Face's Trainer on generated text, exact after any kill."""

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

import orch.huggingface

WORDS, LENGTH, STEPS = 50, 12, 30


class Counting(Dataset):
    """Sequences that count up from somewhere: generated, nobody's data."""

    def __len__(self):
        return 96

    def __getitem__(self, index):
        tokens = (torch.arange(LENGTH) + index) % WORDS
        return {"input_ids": tokens, "labels": tokens}


set_seed(1)
config = GPT2Config(
    vocab_size=WORDS, n_positions=LENGTH, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
)
trainer = Trainer(
    model=GPT2LMHeadModel(config),
    args=TrainingArguments(
        "output",
        max_steps=STEPS,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    ),
    train_dataset=Counting(),
)
kept = orch.huggingface.Checkpoint(trainer)
trainer.train(resume_from_checkpoint=kept.folder)
print(f"done after {trainer.state.global_step} steps")
torch.save({"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()}, "final.pt")
