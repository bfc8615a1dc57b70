"""From the packets of a stream to sound pictures: what there is, and what of it is decoded."""
