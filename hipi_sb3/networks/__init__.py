"""Fast arithmetic on the networks of stable-baselines3."""
