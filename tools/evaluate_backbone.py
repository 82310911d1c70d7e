"""`lowres-rcnn evaluate_backbone` in a checkout: python -m tools.evaluate_backbone --help."""

from detect.commands.evaluate_backbone import main

if __name__ == "__main__":
    main()
