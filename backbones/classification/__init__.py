"""Networks as image classifiers: trained (`pretraining`) and scored (`evaluation`, `classifiers`,
`report`).
"""
