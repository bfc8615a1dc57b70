"""What a user would otherwise serve the same ONNX file with, each as its own documentation shows it.

These files run in environments of their own, with the peer and what it needs and without this project: they import
nothing of it. The servers take a POST of ``/predict`` and answer with a JSON list of fake probabilities.
"""
