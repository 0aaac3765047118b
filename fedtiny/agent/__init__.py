"""The device's shell: a link over gRPC and a store on disk around `fedtiny.device`."""
