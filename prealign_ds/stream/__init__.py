"""The training stream: ``sample(k)`` as a pure function of (seed, data, blend)."""
