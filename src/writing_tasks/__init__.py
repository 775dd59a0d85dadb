"""Short texts to write under instructions that a program can check. Knows nothing of models or training."""
