"""Images with a label: found, read, changed at random, and served in an order that can be resumed.

`sources` finds them in folders and shards, `shards` and `streams` read those that stay remote,
`transforms` and `multi_crop` make network inputs, `datasets` and `loaders` serve batches, in the
order of `sampler`, read by `workers` and come by `handover`.
"""
