"""`lowres-rcnn propose` in a checkout: python -m tools.propose --help."""

from detect.commands.propose import main

if __name__ == "__main__":
    main()
