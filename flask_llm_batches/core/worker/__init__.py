"""What goes on without a caller: one file per step, and the tick that runs them."""
