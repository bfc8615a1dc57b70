"""From a frame to its faces, and from a face to the crop that a network takes."""
