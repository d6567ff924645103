"""The command line: cli (commands), cluster (up, down, logs), produce_consume, status, inspect (verify), dump, doctor. Nothing imports this."""
