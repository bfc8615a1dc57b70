"""The client library and the `deepfake` command."""
