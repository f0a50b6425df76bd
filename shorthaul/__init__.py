"""Shorthaul: faster training of neural networks by moving less data."""
