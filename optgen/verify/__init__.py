"""Differential tests of a rule's kernels against the reference, over the grid of its options."""
