"""From a trained flow to one of few steps: pairs that it joins, straightening, distillation, fitted solvers."""
