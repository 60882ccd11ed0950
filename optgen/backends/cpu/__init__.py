"""The CPU back end: loops that Numba compiles."""
