"""Train a backbone on ImageNet-style data.

python -m tools.train_backbone --config configs/backbone/inception_v3_79.yaml --data.root DIR
"""

from detect.commands.train_backbone import main

if __name__ == "__main__":
    main()
