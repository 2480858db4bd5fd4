"""Methods that choose their steps by an error estimate, per sample or for the whole batch."""
