"""PAN-Crafter: the network, its inputs and its weights (the only place, beside engine and train, that knows torch)."""
