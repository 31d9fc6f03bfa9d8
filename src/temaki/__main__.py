"""`python -m temaki` is the command `temaki`."""

from temaki.cli.main import main

if __name__ == "__main__":
    main()
