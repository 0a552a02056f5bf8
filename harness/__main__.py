"""``python -m harness``: installs itself into ``.venv`` where needed, then runs the command line."""

from harness.bootstrap import main

if __name__ == "__main__":
    main()
