"""PAN-Crafter: the network, its inputs and its weights (few modules beside it know torch; a test lists them)."""
