"""The Inception networks, their weights as files, and what they cost.

`create_backbone` (`inception`) builds a variant that `specs` describes, from `stems` and `blocks`;
`weights` reads and writes them, also under torchvision's and timm's names.
"""
