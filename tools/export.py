"""Write a trained network as ONNX: a backbone, or the crop network of a detector.

python -m tools.export --weights runs/mine/best.safetensors --output runs/mine/best.onnx
"""

from detect.commands.export import main

if __name__ == "__main__":
    main()
