"""The standby process: a second interpreter that is warmed and waits to take a training process's place."""
