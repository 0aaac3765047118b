"""The coordinator's shell: gRPC, SQLite, certificates around the decisions of `fedtiny.rounds`."""
