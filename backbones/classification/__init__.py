"""Networks as image classifiers: trained (`pretraining`) and scored (`evaluation`, `classifiers`,
`report`).

`receptive_fields` compares variants as the paper's Table 2 does.
"""
