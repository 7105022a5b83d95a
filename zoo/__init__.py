"""The launcher: rl_zoo3 with HIPI's algorithms and evaluation task by task. Runs from the checkout, is not installed."""
