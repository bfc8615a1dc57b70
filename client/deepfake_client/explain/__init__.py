"""The most suspicious faces of a verdict, explained by a checkpoint here or by the explain service."""
