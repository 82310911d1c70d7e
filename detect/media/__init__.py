"""Pictures and videos: found (`sources`), read and written (`video`), drawn on (`drawing`)."""
