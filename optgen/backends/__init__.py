"""From a plan to kernels: what back ends share, the NumPy reference, the cache, a folder for each."""
