"""The serving options that suit this machine, found on recorded traffic."""
