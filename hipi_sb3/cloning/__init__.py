"""HIPI-BC: behaviour cloning of trajectories for the tasks that they were right for."""
