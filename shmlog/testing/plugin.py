"""The pytest plugin (entry point pytest11): fixture shmlog_cluster, one cluster a session and a namespace a test."""
