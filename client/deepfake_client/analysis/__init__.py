"""From frames to a judgement: detection, tracking, weights, scores, label and reason."""
