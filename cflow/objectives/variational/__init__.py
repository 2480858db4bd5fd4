"""A law that is known up to its constant, from samples of the flow's own."""
