//! The logic of one dispatcher shard, sans-IO: [`shard::Shard::step`] takes an [`event::Event`] and the time, and
//! appends [`action::Action`]s; [`ownership`] says which partitions a node should serve.
//!
//! | file | its idea |
//! |---|---|
//! | [`shard`] | takes events, ends turns |
//! | [`hub`] | what all parts share, and the hand that is passed down |
//! | [`links`], [`credit`] | links at home here, and what waits for their credit |
//! | [`partition`], [`batch`] | one partition's life; its writes and what follows them |
//! | `fanned`, `recovery` | how far fan-out has come; what the next owner tells again |
//! | [`ask`], [`conversation`], [`streams`], [`members`] | records read; a conversation in memory; repeats; who is in |
//! | [`holds`] | messages that wait for something to be read |
//! | [`entry`], `retention` | what goes into a log, and when it goes out of it |
//! | [`clocks`] | what time it is, where no clock is believed alone |
//! | [`send`], [`subscribe`] | what can be asked of a conversation |
//! | [`admin`], [`groups`], [`notes`] | who may change a group; carrying it out; entries about it |
//! | [`group_info`], [`group_members`] | what is known of a group; reading it |
//! | [`pair`], [`lists`] | friends and blocks; users' lists |
//! | [`lease`] | which life of a node holds its name |
//! | [`typing`] | who is typing |
//! | [`presence`], [`watches`], [`visible`] | who is online, who watches, who is shown what |
//! | [`register`], [`closes`], [`delivery`] | users' sessions; those that lost their place; messages for single sessions |

pub mod action;
pub mod admin;
pub mod ask;
pub mod batch;
pub mod clocks;
pub mod closes;
pub mod conversation;
pub mod credit;
mod cursors;
pub mod delivery;
pub mod entry;
pub mod event;
mod events;
mod fanned;
mod fates;
pub mod group_info;
pub mod group_members;
pub mod groups;
pub mod holds;
pub mod hub;
pub mod lease;
pub mod limits;
pub mod links;
pub mod lists;
pub mod members;
pub mod notes;
mod outcomes;
pub mod ownership;
pub mod pair;
pub mod partition;
pub mod presence;
mod receipts;
mod recovery;
mod refer;
pub mod register;
mod retention;
pub mod send;
mod serve;
pub mod shard;
mod standing;
pub mod stats;
pub mod streams;
pub mod subscribe;
mod sync;
pub mod typing;
mod visible;
pub mod watches;

#[cfg(test)]
mod tests;
