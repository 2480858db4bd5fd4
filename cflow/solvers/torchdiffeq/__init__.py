"""The library torchdiffeq: its methods as solvers, and its functions computed by our solvers."""
