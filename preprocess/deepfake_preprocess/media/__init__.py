"""From a file, an address, a camera or arrays to the sampled frames."""
