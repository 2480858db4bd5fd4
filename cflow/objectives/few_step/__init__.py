"""Steps in place of velocities: average velocities, consistency, reflow, distillation."""
