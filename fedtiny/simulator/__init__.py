"""A fleet of simulated devices under a virtual clock."""
