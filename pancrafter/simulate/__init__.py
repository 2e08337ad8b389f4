"""Simulated satellite scenes with known truth: surface, imaging chain, and a small STAC archive made of them."""
