"""How gradients pass through a solve: the modes, the exact adjoint of its steps, and the search for parameters."""
