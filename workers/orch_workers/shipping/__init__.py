"""What travels to a machine before a job runs there, and what comes back from it."""
