"""The typed program that every stage reads: extents, nodes, and what each operation means."""
