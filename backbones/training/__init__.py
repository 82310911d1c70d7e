"""What trains any network here, of classifiers and detectors alike.

`loop.fit` takes steps (`step`) by a recipe (`recipe`), scores and saves between epochs
(`validation`), and keeps a run's files (`run_folder`) and places to resume from (`checkpoints`).
`config` has the keys that all runs share.
"""
