"""The commands. Each imports what it needs itself: `tunebook --help` does not wait for PyTorch."""
