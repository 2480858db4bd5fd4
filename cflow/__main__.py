"""``python -m cflow``, for use where the command ``cflow`` is not on the path."""

from cflow.cli import main

if __name__ == "__main__":
    main()
