"""The work that needs no caller: one file per step, and the tick that runs the steps."""
