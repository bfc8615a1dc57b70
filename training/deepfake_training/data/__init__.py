"""What a detector is trained on: packed faces, self-blended fakes, degradations and splits."""
