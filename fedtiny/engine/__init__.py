"""The training engine: a model and a byte budget become a Program; a Program trains."""
