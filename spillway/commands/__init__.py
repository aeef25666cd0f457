"""One module per command of `spillway`."""
