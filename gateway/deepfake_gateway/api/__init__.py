"""The HTTP interface for programs: API v1, compatibility routes and operations."""
