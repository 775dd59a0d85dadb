"""What only a CPU needs: attention without repeated keys, prefixes computed once."""
