"""The network, its configuration and its checkpoints."""
