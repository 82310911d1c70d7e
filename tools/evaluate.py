"""`lowres-rcnn evaluate` in a checkout: python -m tools.evaluate --help."""

from detect.commands.evaluate import main

if __name__ == "__main__":
    main()
