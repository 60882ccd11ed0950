"""A simulated NVIDIA H100 for tests: Triton's own JIT and launcher over a libcuda without a device.

Each launch executes, in NumPy, the PTX that an H100 would be given: every thread of every block, with
barriers, shuffles and shared memory. `device.py` says how a test gets it, and what it finds.
"""
