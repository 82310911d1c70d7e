"""Score backbones as image classifiers, each alone and together as an ensemble.

python -m tools.evaluate_backbone --weights runs/mine/best.safetensors --data.root data/imagenet \
    --crops 144
python -m tools.evaluate_backbone --weights runs/mine --data.root data/imagenet

The second scores the weights of the run's newest checkpoint, averaged and raw.
"""

from detect.commands.evaluate_backbone import main

if __name__ == "__main__":
    main()
