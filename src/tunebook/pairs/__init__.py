"""Preference pairs, a file for each method."""
