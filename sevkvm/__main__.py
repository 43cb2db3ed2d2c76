"""``python -m sevkvm``."""

from sevkvm.cli import main

if __name__ == "__main__":
    main()
