"""For tests, users' and our own: a real cluster in a private namespace, faults, history. Nothing of shmlog imports this."""
