"""cflow: continuous flows and flow matching in PyTorch."""
