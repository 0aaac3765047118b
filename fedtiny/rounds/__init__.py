"""Rounds: a pure machine decides, a journal remembers, a coordinator carries out."""
