"""What is scanned: folders, patterns, buckets and manifests as addresses, each with an id."""
