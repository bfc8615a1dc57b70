"""Load on a server, and what was measured and counted under it."""
