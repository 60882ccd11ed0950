"""Programs from programs: chains, other defaults, a specialisation's pass pipeline."""
