"""Training scripts: command line, folder and configuration."""
