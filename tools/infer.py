"""Detect objects in images, folders, globs and videos.

python -m tools.infer --weights runs/digits/best.safetensors --inputs photo.jpg folder/ video.mp4
"""

from detect.commands.infer import main

if __name__ == "__main__":
    main()
