"""FP16 and INT8 forms of a network, and which of them is served."""
