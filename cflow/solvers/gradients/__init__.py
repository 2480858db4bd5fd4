"""How gradients pass through a solve: the modes, the exact adjoint of discrete steps, whose gradients are wanted."""
