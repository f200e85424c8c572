//! What the machine must know of the configuration.

/// Where a device begins in a conversation of which it has no cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// From the cursor that the server keeps for this device.
    #[default]
    Server,
    /// After the newest message. What is older can be read as history.
    Newest,
}

/// See the fields of [`crate::Config`] of the same names.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port`, at least one.
    pub addresses: Vec<String>,
    /// Of this installation.
    pub device: String,
    /// "ios", "web", …
    pub platform: String,
    /// Cursors are kept, and told to the server.
    pub acknowledges: bool,
    /// Where to begin without a cursor.
    pub start: Start,
    /// Events that wait for the application.
    pub events_max: usize,
    /// Messages of a room that are shown after joining it.
    pub room_replay: u32,
    /// For connecting and logging in once; and for the first login in all.
    pub connect_deadline_ms: u64,
    /// Of requests that the machine makes by itself.
    pub request_deadline_ms: u64,
    /// First and longest bound of the pause between connections.
    pub backoff_ms: (u64, u64),
}

impl Settings {
    /// The defaults of [`crate::Config`], with this address and device.
    pub fn new(address: &str, device: &str) -> Self {
        let config = crate::Config { device: device.into(), ..crate::Config::new([address], "") };
        config.settings()
    }
}
