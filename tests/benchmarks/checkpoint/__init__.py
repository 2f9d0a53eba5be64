"""What a checkpoint costs, beside the peers: `python -m tests.benchmarks.checkpoint`."""
