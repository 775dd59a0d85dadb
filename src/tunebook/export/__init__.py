"""The trained model as people run it, proved to be the same model."""
