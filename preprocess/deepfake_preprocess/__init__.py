"""Lowest layer: the model contract, and the way from a video to face crops. Imports no torch, no server.

Modules: `spec` and `manifest` (the contract), `video` and `frame` (decoding), `face` and `mtcnn`
(detection), `crop` (what the network sees), `errors` (the error tree of the whole project).
"""
