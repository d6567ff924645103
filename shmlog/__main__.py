"""`python -m shmlog` is the command `shmlog`."""

from shmlog.tools.cli import main

if __name__ == "__main__":
    main()
