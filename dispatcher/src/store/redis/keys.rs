//! Where everything lies in Redis: every key there is, made here and nowhere else.
//!
//! The rule that keeps it right: all keys of a partition share one hash tag, so that one script may touch them in a
//! cluster too; what belongs to no partition (leases, owners) shares another.
//!
//! ```text
//! {mr:<cluster>:p<n>}:fence        hash    e epoch, n nonce, w node, i incarnation, p next position, l highest message id,
//!                                           t when it was claimed, c by which copy of the store,
//!                                           h in which history of it (its replication id)
//! {mr:<cluster>:p<n>}:l:<conv>     hash    seq -> record, f first seq, s swept up to, i answers filed up to
//! {mr:<cluster>:p<n>}:a:<conv>:<user>:<device>            list    streams that have answers filed, oldest first; expires
//! {mr:<cluster>:p<n>}:a:<conv>:<user>:<device>:<stream>   text    answers, oldest first; expires
//! {mr:<cluster>:p<n>}:m:<conv>     hash    '' -> version, member -> ''
//! {mr:<cluster>:p<n>}:r:<user>     hash    device -> login:incarnation:session:platform
//! {mr:<cluster>:p<n>}:u:<l>:<user> zset    list l of a user: item \0 value, all of score 0: in byte order
//! {mr:<cluster>:p<n>}:logins       number  the highest login number
//! {mr:<cluster>:p<n>}:lost         zset    sessions to be closed: user \0 device \0 login:incarnation:session:platform
//! {mr:<cluster>:nodes}:n:<name>    text    incarnation:address, expires        …:names     set
//! {mr:<cluster>:nodes}:g:<id>      text    incarnation:copy:grant, expires     …:lives     set of id:incarnation
//! {mr:<cluster>:nodes}:owners      hash    partition -> epoch:node
//! {mr:<cluster>:nodes}:format      text    version:partitions                  …:sweep     text, expires
//! ```
//! Only leases, the sweep's lock and answers expire. A fence that expired would let an old epoch in again.
//!
//! A log is a hash and not a stream, because an entry that is recalled is replaced, and a stream's entries can't be.

use millrace_protocol::ids::{Partition, user_partition};

use crate::store::{List, StreamKey};

/// Version of what is above.
pub(super) const FORMAT: u32 = 5;

/// Makes the keys of one cluster.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    cluster: String,
    partitions: u16,
}

impl Keys {
    pub(super) fn new(cluster: &str, partitions: u16) -> Self {
        Self { cluster: cluster.to_owned(), partitions }
    }

    pub(super) fn partitions(&self) -> u16 {
        self.partitions
    }

    pub(super) fn fence(&self, partition: Partition) -> String {
        self.of_partition(partition, "fence", "")
    }

    pub(super) fn log(&self, partition: Partition, conversation: &str) -> String {
        self.of_partition(partition, "l:", conversation)
    }

    pub(super) fn members(&self, partition: Partition, conversation: &str) -> String {
        self.of_partition(partition, "m:", conversation)
    }

    pub(super) fn outstanding(&self, partition: Partition) -> String {
        self.of_partition(partition, "out", "")
    }

    pub(super) fn events(&self, partition: Partition) -> String {
        self.of_partition(partition, "ev", "")
    }

    pub(super) fn state(&self, partition: Partition, conversation: &str) -> String {
        self.of_partition(partition, "s:", conversation)
    }

    pub(super) fn cursors(&self, partition: Partition, conversation: &str) -> String {
        self.of_partition(partition, "c:", conversation)
    }

    /// The streams of a device. Its answers' keys are this, a colon and the stream's name.
    pub(super) fn streams(
        &self,
        partition: Partition,
        conversation: &str,
        user: &str,
        device: &str,
    ) -> String {
        self.of_partition(partition, "a:", &format!("{conversation}:{user}:{device}"))
    }

    pub(super) fn answers(&self, partition: Partition, conversation: &str, stream: &StreamKey) -> String {
        let streams = self.streams(partition, conversation, &stream.user, &stream.device);
        format!("{streams}:{}", stream_name(stream.stream))
    }

    pub(super) fn routes(&self, user: &str) -> String {
        self.of_partition(self.home(user), "r:", user)
    }

    /// Matches every key of [`Keys::routes`].
    pub(super) fn routes_pattern(&self) -> String {
        format!("{{mr:{}:p*}}:r:*", self.cluster)
    }

    pub(super) fn list(&self, user: &str, list: List) -> String {
        let list = match list {
            List::Groups => "g",
            List::Directs => "d",
            List::Friends => "f",
            List::FriendRequests => "r",
            List::Blocks => "b",
            List::Settings => "s",
        };
        self.of_partition(self.home(user), "u:", &format!("{list}:{user}"))
    }

    pub(super) fn logins(&self, user: &str) -> String {
        self.of_partition(self.home(user), "logins", "")
    }

    pub(super) fn lost(&self, partition: Partition) -> String {
        self.of_partition(partition, "lost", "")
    }

    pub(super) fn node(&self, name: &str) -> String {
        self.of_nodes("n:", name)
    }

    pub(super) fn gateway(&self, gateway: &str) -> String {
        self.of_nodes("g:", gateway)
    }

    pub(super) fn names(&self) -> String {
        self.of_nodes("names", "")
    }

    pub(super) fn lives(&self) -> String {
        self.of_nodes("lives", "")
    }

    pub(super) fn owners(&self) -> String {
        self.of_nodes("owners", "")
    }

    pub(super) fn format(&self) -> String {
        self.of_nodes("format", "")
    }

    pub(super) fn sweep(&self) -> String {
        self.of_nodes("sweep", "")
    }

    pub(super) fn home(&self, user: &str) -> Partition {
        user_partition(user, self.partitions)
    }

    fn of_partition(&self, partition: Partition, kind: &str, name: &str) -> String {
        format!("{{mr:{}:p{partition}}}:{kind}{name}", self.cluster)
    }

    fn of_nodes(&self, kind: &str, name: &str) -> String {
        format!("{{mr:{}:nodes}}:{kind}{name}", self.cluster)
    }
}

/// A stream as it stands in keys.
pub(super) fn stream_name(stream: u64) -> String {
    format!("{stream:x}")
}
