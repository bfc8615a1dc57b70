"""What outlives a restart: a database of analyses and a folder of media."""
