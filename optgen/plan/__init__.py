"""From a lowered program and storage to an ordered list of steps over named buffers."""
