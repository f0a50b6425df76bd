"""Measured speed: networks in plain PyTorch, and the programs that time their training."""
