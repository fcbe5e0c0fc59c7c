"""Methods: NumPy functions over the adapter interface. They import no framework."""
