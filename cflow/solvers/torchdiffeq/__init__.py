"""The library torchdiffeq: its methods behind the contract of a solver, and its call answered by our solvers."""
