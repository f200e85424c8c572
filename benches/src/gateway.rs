//! A gateway shard as a whole: heartbeats, what clients send, direct messages, and passes over a room whose listeners
//! are a list and a bitmap. The dispatcher's end of the link is in the figures.

use crate::room::{Frames, Room};
use crate::{Path, Run, path};

pub(crate) const PATHS: &[Path] = &[
    path("gateway/heartbeats", 64, 20, heartbeats),
    path("gateway/sends", 64, 20, sends),
    path("gateway/direct-messages", 64, 20, direct_messages),
    path("gateway/fan-out-list-100", 100, 20, || fan_out(100)),
    path("gateway/fan-out-bitmap-10000", 10_000, 2, || fan_out(10_000)),
];

/// Frames that were encoded for their one receiver.
const fn own(own: u32) -> Frames {
    Frames { shared: 0, own }
}

/// Frames that came encoded, of which there may be other receivers.
const fn shared(shared: u32) -> Frames {
    Frames { shared, own: 0 }
}

fn heartbeats() -> Run {
    let mut room = Room::new(64);
    Box::new(move || assert_eq!(room.heartbeats(64), own(64)))
}

fn sends() -> Run {
    let mut room = Room::new(64);
    Box::new(move || assert_eq!(room.sends(64), own(64)))
}

fn direct_messages() -> Run {
    let mut room = Room::new(64);
    Box::new(move || assert_eq!(room.directs(64), shared(64)))
}

fn fan_out(listeners: u32) -> Run {
    let mut room = Room::new(listeners);
    Box::new(move || assert_eq!(room.fan_out(), shared(listeners)))
}
