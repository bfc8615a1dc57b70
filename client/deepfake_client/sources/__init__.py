"""What the inputs of an analysis may be, and how many are worked on at once."""
