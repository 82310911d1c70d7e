"""From regions to detections: `model.RCNN`, with what happens before and after its network.

In training `matching` and `minibatch` choose the crops of a step; `crops` cuts them, by
`resampling`; `postprocess` makes detections of scores and boxes. `checks` names a caller's
mistakes.
"""
