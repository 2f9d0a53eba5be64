"""Several ranks as one: agents that agree when their processes start, what they restore, which step they save, and
when they leave. docs/gangs.md is the protocol; what decides is pure (leader.py), what acts is member.py.
"""
