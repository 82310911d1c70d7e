"""`lowres-rcnn export` in a checkout: python -m tools.export --help."""

from detect.commands.export import main

if __name__ == "__main__":
    main()
