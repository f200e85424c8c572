//! Frames out of a stream.
