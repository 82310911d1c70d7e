"""Detectors beside others: `speed_accuracy` with peers, `stages` where time goes, `crop_networks`
which network on the crops.
"""
