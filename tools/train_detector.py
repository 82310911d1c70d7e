"""`lowres-rcnn train_detector` in a checkout: python -m tools.train_detector --help."""

from detect.commands.train_detector import main

if __name__ == "__main__":
    main()
