"""The same crops through everything that a user could have chosen instead."""
