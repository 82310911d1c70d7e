"""Videos in another container."""

from pathlib import Path

import av


def repack(source: Path, target: Path) -> None:
    """Copy the frames of a video, as they are compressed, into the container of a suffix."""
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
