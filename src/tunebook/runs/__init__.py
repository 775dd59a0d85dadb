"""The run folder: stages that appear whole or not at all, files, the manifest, and this machine."""
