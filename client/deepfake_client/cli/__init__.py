"""The `deepfake` command. The only place of the client that knows the names of options."""
