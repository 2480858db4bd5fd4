"""Methods that choose their steps by an error, for each sample of a batch or for all of it together."""
