"""Write the proposals of a detector for whole splits, to train and compare detectors on the same.

python -m tools.propose --weights runs/mine --data.format voc --data.root DIR \
    --splits "[train, val]" --output proposals.json
"""

from detect.commands.propose import main

if __name__ == "__main__":
    main()
