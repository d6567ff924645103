"""The coordinator: decides (metadata), remembers (store), and keeps the processes of a cluster going (server)."""
