"""Python environments of jobs (`python:` in the job file): built once per content by uv, kept on the machine."""
