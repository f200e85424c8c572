//! What messages are allowed and how long they are kept: one file, the same for a dispatcher and for a gateway that runs
//! alone (`--policies FILE`).
//!
//! Every node of a cluster needs the same file: what a message may do must not depend on who owns its partition. The
//! rule that keeps it right: a key that does not exist is an error, never ignored.

use std::path::Path;

use serde::Deserialize;

use super::limits;
use crate::core::limits::{Limits, Retention};

/// The file's keys. What is absent is as [`Limits::default`] says; 0 for a retention means no bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policies {
    /// Bytes of a message's payload at most; the gateways' own `payload_bytes_max` should say the same.
    pub payload_bytes_max: Option<usize>,
    /// Members of a group at most.
    pub group_members_max: Option<usize>,
    /// How long after a message its sender may edit it, seconds.
    pub edit_window_s: Option<u64>,
    /// How long after a message its sender may recall it, seconds.
    pub recall_window_s: Option<u64>,
    /// Whether users who are no friends may send to each other.
    pub strangers_may_write: Option<bool>,
    /// Logins, logouts and receipts are written as events too.
    pub events: Option<bool>,
    /// How much of direct conversations and groups is kept.
    #[serde(default)]
    pub retention: Keep,
    /// How much of rooms is kept.
    #[serde(default)]
    pub retention_rooms: Keep,
}

/// How much of a conversation is kept; what is beyond any of these goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keep {
    /// Entries.
    #[serde(default)]
    pub count: u64,
    /// Days.
    #[serde(default)]
    pub days: u64,
    /// Bytes.
    #[serde(default)]
    pub bytes: u64,
}

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum PoliciesError {
    /// It can't be read.
    #[error("{file}: {error}")]
    File {
        /// As given.
        file: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// It is no TOML, or has keys that don't exist.
    #[error("{file}: {reason}")]
    Refused {
        /// As given.
        file: String,
        /// What is wrong.
        reason: String,
    },
}

impl Policies {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`PoliciesError`].
    pub fn read(path: &Path) -> Result<Self, PoliciesError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| PoliciesError::File { file: file.clone(), error })?;
        Self::parse(&text).map_err(|reason| PoliciesError::Refused { file, reason })
    }

    fn parse(text: &str) -> Result<Self, String> {
        use figment::providers::{Format, Toml};
        let read: Result<Self, figment::Error> = figment::Figment::from(Toml::string(text)).extract();
        let policies = read.map_err(|error| error.to_string())?;
        let (low, high) = limits::GROUP_MEMBERS_MAX_RANGE;
        if policies.group_members_max.is_some_and(|members| !(low..=high).contains(&members)) {
            return Err(format!("group_members_max: expected {low} to {high}"));
        }
        let payload_bytes_max = millrace_protocol::frame::PAYLOAD_BYTES_MAX;
        if policies.payload_bytes_max.is_some_and(|bytes| !(1..=payload_bytes_max).contains(&bytes)) {
            return Err(format!("payload_bytes_max: expected 1 to {payload_bytes_max}"));
        }
        Ok(policies)
    }

    /// As the core takes them.
    pub fn limits(&self) -> Limits {
        let default = Limits::default();
        let keep = |keep: &Keep| Retention {
            count: keep.count,
            age_ms: keep.days.saturating_mul(24 * 3_600_000),
            bytes: keep.bytes,
        };
        let window = |seconds: Option<u64>, default| seconds.map_or(default, |s| s.saturating_mul(1_000));
        Limits {
            payload_bytes_max: self.payload_bytes_max.unwrap_or(default.payload_bytes_max),
            group_members_max: self.group_members_max.unwrap_or(default.group_members_max),
            edit_window_ms: window(self.edit_window_s, default.edit_window_ms),
            recall_window_ms: window(self.recall_window_s, default.recall_window_ms),
            strangers_may_write: self.strangers_may_write.unwrap_or(default.strangers_may_write),
            events: self.events.unwrap_or(default.events),
            retention: keep(&self.retention),
            retention_rooms: keep(&self.retention_rooms),
            ..default
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_as_before_and_what_is_wrong_is_named() {
        assert_eq!(Policies::parse("").unwrap(), Policies::default());
        let text =
            "recall_window_s = 5\nevents = true\n[retention]\ndays = 2\n[retention_rooms]\ncount = 100\n";
        let limits = Policies::parse(text).unwrap().limits();
        assert_eq!((limits.recall_window_ms, limits.events), (5_000, true));
        assert_eq!((limits.retention.age_ms, limits.retention_rooms.count), (172_800_000, 100));
        assert_eq!(limits.edit_window_ms, Limits::default().edit_window_ms);
        for (text, named) in [
            ("recal_window_s = 5", "recal_window_s"),
            ("events = 3", "events"),
            ("group_members_max = 0", "group_members_max"),
            ("payload_bytes_max = 99999999", "payload_bytes_max"),
            ("[retention]\nweeks = 1", "weeks"),
        ] {
            let error = Policies::parse(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
