"""The broker: one Python thread of policy (server) over the C threads that do the work (csrc/spill.c).

retention decides what may go (pure), recovery makes a partition's files right before it is taken over, server does the I/O and talks to the
coordinator.
"""
