"""The Triton back end: fused multi-tensor kernels for GPUs, and their ahead-of-time compilation."""
