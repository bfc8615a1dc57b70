"""What a served model is: its spec, manifest, Triton configuration, directory and TensorRT plans."""
