"""The machine that is measured on: what it is, its processes and its clock."""
