"""The Inception networks, their weights as files, and what they cost.

`create_backbone` (`inception`) builds a variant that `specs` describes, from `stems` and `blocks`.
`checkpoint` writes and reads one as a file, of which `weights` knows the format, `metadata` what it
says of the network, and `state_dicts` whether its tensors fit; `warm_start` begins with the weights
of another network, of which `narrowing` makes those of a narrower one, and `conversion` knows them
under torchvision's and timm's names.
"""
