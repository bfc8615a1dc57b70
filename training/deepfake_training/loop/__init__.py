"""One training run: its configuration, epochs, checkpoints, and what is made of several runs."""
