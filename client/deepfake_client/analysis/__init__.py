"""From frames to a judgment: detection, tracking, weights, scores, label and reason."""
