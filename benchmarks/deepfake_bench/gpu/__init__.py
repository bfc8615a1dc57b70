"""One network through every engine of a GPU, against the roofline."""
