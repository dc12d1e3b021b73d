"""The model around the network: device, files, perception and requests, export."""
