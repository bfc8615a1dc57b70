"""What one server takes, and how long its callers wait."""
