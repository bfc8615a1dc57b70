"""How fakes are made of real photographs: blended with themselves, swapped, given another mouth, made anew."""
