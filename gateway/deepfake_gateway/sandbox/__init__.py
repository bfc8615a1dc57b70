"""Untrusted media is opened in processes of their own, with bounds on what they may use."""
