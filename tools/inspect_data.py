"""Say what a dataset holds and what may be wrong with it, with pictures of its boxes.

python -m tools.inspect_data --data PATH
"""

from detect.commands.inspect_data import main

if __name__ == "__main__":
    main()
