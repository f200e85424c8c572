//! Scenarios of a whole shard, against a fake dispatcher.
