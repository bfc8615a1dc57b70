"""What the commands of all packages share; no library module imports it."""
