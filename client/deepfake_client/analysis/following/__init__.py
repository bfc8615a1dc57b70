"""Following faces from frame to frame: which detection belongs to which track."""
