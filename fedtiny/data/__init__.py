"""Tasks and readers: where the samples of simulated devices come from."""
