"""Score a detector, or any detector's results, and write a report.

python -m tools.evaluate --weights runs/mine/best.safetensors --data.format voc --data.root DIR \
    --split test
python -m tools.evaluate --results results.json --data.format coco --data.root DIR --split val2017
"""

from detect.commands.evaluate import main

if __name__ == "__main__":
    main()
