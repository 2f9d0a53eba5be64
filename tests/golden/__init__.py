"""Checkpoints of every format version there was, as they were written, and what they must restore to."""
