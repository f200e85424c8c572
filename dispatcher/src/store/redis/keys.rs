//! Where everything lies in Redis: every key there is, made here and nowhere else.
//!
//! The rule that keeps it right: all keys of a partition share one hash tag, so that one script may touch them in a
//! cluster too; what belongs to no partition (leases, owners) shares another.
//!
//! ```text
//! {mr:<cluster>:p<n>}:fence        hash    e epoch, n nonce, w node, i incarnation, p next position, l highest message id
//! {mr:<cluster>:p<n>}:l:<conv>     stream  id <seq>-0, field e: the record
//! {mr:<cluster>:p<n>}:m:<conv>     hash    '' -> version, member -> ''
//! {mr:<cluster>:p<n>}:r:<user>     hash    device -> login:incarnation:session:platform
//! {mr:<cluster>:p<n>}:g:<user>     set     conversation ids
//! {mr:<cluster>:p<n>}:logins       number  the highest login number
//! {mr:<cluster>:nodes}:n:<name>    text    incarnation:address, expires        …:names     set
//! {mr:<cluster>:nodes}:g:<id>      text    incarnation, expires                …:lives     set of id:incarnation
//! {mr:<cluster>:nodes}:owners      hash    partition -> epoch:node
//! {mr:<cluster>:nodes}:format      text    version:partitions                  …:sweep     text, expires
//! ```
//! Only leases and the sweep's lock expire. A fence that expired would let an old epoch in again.

use millrace_protocol::ids::{Partition, user_partition};

/// Version of what is above.
pub(super) const FORMAT: u32 = 1;

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

    pub(super) fn routes(&self, user: &str) -> String {
        self.of_partition(self.home(user), "r:", user)
    }

    /// Matches every key of [`Keys::routes`].
    pub(super) fn routes_pattern(&self) -> String {
        format!("{{mr:{}:p*}}:r:*", self.cluster)
    }

    pub(super) fn groups(&self, user: &str) -> String {
        self.of_partition(self.home(user), "g:", user)
    }

    pub(super) fn logins(&self, user: &str) -> String {
        self.of_partition(self.home(user), "logins", "")
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

    fn home(&self, user: &str) -> Partition {
        user_partition(user, self.partitions)
    }

    fn of_partition(&self, partition: Partition, kind: &str, name: &str) -> String {
        format!("{{mr:{}:p{partition}}}:{kind}{name}", self.cluster)
    }

    fn of_nodes(&self, kind: &str, name: &str) -> String {
        format!("{{mr:{}:nodes}}:{kind}{name}", self.cluster)
    }
}
