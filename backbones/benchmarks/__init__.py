"""Speed and memory beside the peers that a user would take instead: torchvision, timm, OpenVINO;
and variants beside each other, as in the paper's Table 2 (`receptive_fields`).
"""
