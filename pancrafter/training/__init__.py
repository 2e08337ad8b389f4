"""Training PAN-Crafter: pairs by Wald's protocol from real scenes and from the simulator, one L1 loss per mode."""
