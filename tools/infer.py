"""`lowres-rcnn infer` in a checkout: python -m tools.infer --help."""

from detect.commands.infer import main

if __name__ == "__main__":
    main()
