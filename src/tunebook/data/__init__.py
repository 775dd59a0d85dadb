"""Rows: where they come from, whether they are sound, and how they are kept."""
