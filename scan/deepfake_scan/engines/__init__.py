"""Who does the work of a scan: this machine, or a Ray cluster."""
