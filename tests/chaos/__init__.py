"""Real kills."""
