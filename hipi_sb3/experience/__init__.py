"""What happened: observations, tasks, actions, rewards and episodes of a ring buffer. No algorithm, no critic."""
