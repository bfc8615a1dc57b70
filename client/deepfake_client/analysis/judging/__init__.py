"""From faces and their scores to a verdict: what counts, how much, and what decides."""
