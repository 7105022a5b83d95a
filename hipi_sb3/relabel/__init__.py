"""For which task was a transition the right thing to do: the posterior and all that it is made of."""
