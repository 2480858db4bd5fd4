"""Few-step sampling of a trained flow: pairs of noise and sample, reflow, distillation, fitted solvers."""
