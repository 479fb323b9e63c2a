"""What `tools/soak.py` does in its rounds: one module for each kind of round."""
