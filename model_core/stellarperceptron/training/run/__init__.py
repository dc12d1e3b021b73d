"""A training as a program: its command line, its folder, its configuration."""
