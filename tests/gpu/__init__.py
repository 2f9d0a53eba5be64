"""What can be tried only on a machine with a GPU; run by hand, one module at a time."""
