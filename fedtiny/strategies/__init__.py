"""Strategies: one paper a file. Each says whom to ask for what, and what becomes of the answers."""
