"""The C99 runtime: the same sources run on a board, in the agent and in the simulator."""
