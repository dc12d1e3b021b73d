"""Catalogues of labels of real stars: files in, a table out, and the command that does it."""
