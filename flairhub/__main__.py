"""`python -m flairhub` is the `flairhub` command."""

from flairhub.cli import main

if __name__ == "__main__":
    main()
