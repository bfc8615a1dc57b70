"""From clip to verdict, and its stages: decoding, detection, explanation."""
