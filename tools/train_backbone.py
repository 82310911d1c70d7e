"""`lowres-rcnn train_backbone` in a checkout: python -m tools.train_backbone --help."""

from detect.commands.train_backbone import main

if __name__ == "__main__":
    main()
