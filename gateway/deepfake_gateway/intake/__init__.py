"""The way in: uploads stream to disk, options are checked, analyses are recorded and queued."""
