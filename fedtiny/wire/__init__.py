"""What travels between devices and a coordinator, in bytes."""
