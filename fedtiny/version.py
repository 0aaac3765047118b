"""The version of fedtiny, for those who may not import all of it."""

__version__ = "0.1.0"
