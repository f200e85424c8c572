//! The protobuf messages, generated from proto/: [`client`] for client frames, [`link`] for link records.

#![allow(missing_docs)]

/// Bodies of client frames.
pub mod client {
    include!(concat!(env!("OUT_DIR"), "/millrace.client.rs"));
}

/// Bodies of link records.
pub mod link {
    include!(concat!(env!("OUT_DIR"), "/millrace.link.rs"));
}
