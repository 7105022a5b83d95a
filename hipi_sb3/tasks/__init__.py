"""Task families: what a reward is."""
