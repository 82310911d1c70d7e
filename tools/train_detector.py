"""Train a detector and score it.

python -m tools.train_detector --config configs/detector/digits_79.yaml
"""

from detect.commands.train_detector import main

if __name__ == "__main__":
    main()
