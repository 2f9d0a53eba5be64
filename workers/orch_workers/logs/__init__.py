"""What a worker's command writes: kept, followed, copied to storage, and cleared of secrets."""
