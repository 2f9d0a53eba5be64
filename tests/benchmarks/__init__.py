"""orch beside its peers, each pair in the same run: `python -m tests.benchmarks [recovery|submit|status]`."""
