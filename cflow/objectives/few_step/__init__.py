"""Objectives for few steps: average velocities, consistency, reflow, distillation."""
