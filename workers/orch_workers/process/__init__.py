"""One training process on this machine: its environment, its guarded start, its use of the machine, its end."""
